import torch

from exprune.core import buffers as buffers_module
from exprune.core.buffers import Buffers


def test_memory_is_used_again_once_its_sum_is_gone() -> None:
    buffers = Buffers()
    one, other = (torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(2))
    with torch.no_grad():
        first = buffers.add(one.clone(), other)
        second = buffers.add(one.clone(), other)
        assert first.data_ptr() != second.data_ptr()
        assert torch.equal(first, one + other) and torch.equal(second, first)
        assert first.stride() == one.stride()
        place = first.data_ptr()
        part = second[:, 1:]
        del first
        third = buffers.add(one.clone(), one)
        assert third.data_ptr() == place
        assert torch.equal(third, 2 * one)
        assert torch.equal(part, (one + other)[:, 1:])


def test_other_shapes_types_and_modes_have_memory_of_their_own() -> None:
    buffers, places = Buffers(), set()
    for one in (torch.ones(3), torch.ones(4), torch.ones(3, dtype=torch.float64), torch.ones(2, 3).T, torch.ones(3, 2)):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                total = buffers.add(one.clone(), one)
                assert torch.equal(total, 2 * one) and total.dtype == one.dtype
                places.add(total.data_ptr())
                del total
    assert len(places) == 10


def test_the_memory_of_ever_new_shapes_is_not_kept() -> None:
    buffers, kept = Buffers(), []
    with torch.no_grad():
        for size in range(1, 100):
            kept.append(buffers.add(torch.full((size,), 1.0), torch.full((size,), float(size))))
            assert len(buffers._known) <= buffers_module._KINDS
        assert all(torch.equal(total, torch.full((size,), 1.0 + size)) for size, total in enumerate(kept, 1))
        place = kept.pop().data_ptr()
        assert buffers.add(torch.ones(99), torch.ones(99)).data_ptr() == place


def test_gradients_go_through() -> None:
    weight = torch.ones(3, requires_grad=True)
    Buffers().add(weight * 2, weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 3.0))
