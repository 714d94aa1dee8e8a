"""The fast passes over outputs give what torch's plain ones do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exprune.core.elementwise import below, both, count_true, select_channels, write_zeros


@given(st.integers(0, 5000), st.integers(0, 2**31), st.floats(0, 1))
def test_count_true(size: int, seed: int, share: float) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
    assert count_true(mask) == mask.sum()
    assert count_true(mask.view(1, -1, 1).expand(3, size, 2)) == 6 * mask.sum()


def test_count_true_of_many() -> None:
    assert count_true(torch.ones(2**18 + 7, dtype=torch.bool)) == 2**18 + 7
    assert count_true(torch.ones(64, 300, dtype=torch.bool).T) == 64 * 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_below_and_write_zeros(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 33).to(dtype)
    bound = torch.randn(33).to(dtype)
    bound[:3] = torch.tensor([-torch.inf, torch.inf, 0])
    values[0] = bound  # not below
    stopped = below(values, bound)
    assert stopped.dtype == torch.bool
    assert torch.equal(stopped, values < bound)
    expected = values.masked_fill(stopped, 0)
    write_zeros(values, stopped)
    assert torch.equal(values, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_select_channels_and_both(channels_last: bool) -> None:
    torch.manual_seed(0)
    x, channels = torch.randn(3, 20, 5, 4), torch.randperm(20)[:7]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for values, dim in ((x, -3), (x, 1), (x[0], -3), (x[:, :, 0, 0], -1), (x[0, :, 0, 0], -1)):
        chosen = select_channels(values, channels, dim)
        assert torch.equal(chosen, values.index_select(dim, channels))
    assert select_channels(x, channels, -3).is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(both(x > 0, x < 1), (x > 0) & (x < 1))


def test_count_true_in_any_memory_order() -> None:
    torch.manual_seed(0)
    mask = torch.rand(3, 20, 9, 8) < 0.3
    last = mask.contiguous(memory_format=torch.channels_last)
    for one in (mask, last, last[1:], last[0], last[:, 3:], mask.movedim(1, 2), mask[..., ::2], mask.flatten()[1:]):
        assert count_true(one) == one.sum()
