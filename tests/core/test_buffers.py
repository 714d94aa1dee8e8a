import torch

from exprune.core.partial_sums.buffers import Buffers


def test_memory_is_used_again_once_its_tensor_is_gone() -> None:
    buffers, like = Buffers(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    first, second = buffers.empty_like(like).fill_(1), buffers.empty_like(like).fill_(2)
    assert torch.equal(first, torch.ones_like(like)) and torch.equal(second, torch.full_like(like, 2))
    assert first.stride() == like.stride()
    place = first.data_ptr()
    del first
    third = buffers.empty_like(like).fill_(3)
    assert third.data_ptr() == place
    assert torch.equal(second, torch.full_like(like, 2))


def test_smaller_and_other_shapes_use_the_same_memory() -> None:
    buffers, large = Buffers(), torch.empty(5, 8)
    place = buffers.empty_like(large).data_ptr()
    for like in (torch.empty(3), torch.empty(2, 3).T, torch.empty(2, 2, 2, 2), torch.empty(0), large):
        out = buffers.empty_like(like)
        assert out.data_ptr() == place or not like.numel()
        assert out.shape == like.shape and out.stride() == like.stride()
        del out


def test_other_types_and_modes_have_memory_of_their_own() -> None:
    buffers, places = Buffers(), set()
    for dtype in (torch.float32, torch.float64):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out = buffers.empty_like(torch.empty(3, dtype=dtype)).fill_(1)
                assert out.dtype == dtype
                places.add(out.data_ptr())
                del out
    assert len(places) == 4


def test_no_more_memory_is_kept_than_was_used_at_once() -> None:
    buffers, kept = Buffers(), []
    for size in range(1, 100):
        kept = [*kept[-2:], buffers.empty_like(torch.empty(size)).fill_(size)]
        assert all((out == len(out)).all() for out in kept)
        assert len(buffers._known) <= 4
