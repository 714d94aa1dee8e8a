"""The fast passes over outputs give the same results as torch's plain ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exprune.core.partial_sums.elementwise import Masks, below, per_row, select_channels, write_zeros


@given(st.integers(0, 5000), st.integers(1, 7), st.integers(0, 2**31), st.floats(0, 1))
def test_masks_are_counted(size: int, count: int, seed: int, share: float) -> None:
    given = torch.rand(count, size, generator=torch.Generator().manual_seed(seed)) < share
    masks = Masks(count, given[0])
    for mask, values in zip(masks, given, strict=True):
        mask.copy_(values)
    assert torch.equal(masks.counts(), given.sum(1))
    assert torch.equal(masks[-1], given[-1])


@given(st.integers(0, 40), st.integers(0, 700), st.integers(0, 2**31), st.floats(0, 1))
def test_rows_are_counted(rows: int, size: int, seed: int, share: float) -> None:
    mask = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed)) < share
    for one in (mask, mask.T):
        assert torch.equal(per_row(one), one.sum(1, keepdim=True))


def test_masks_of_many() -> None:
    masks = Masks(2, torch.empty(2**9 + 1, 2**9))
    masks[0].fill_(True)
    assert masks.counts().tolist() == [2**18 + 2**9, 0]


def test_masks_lie_in_the_order_of_what_they_are_of() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 20, 9, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    for one in (
        x,
        last,
        last[1:],
        last[0],
        last[:, 3:],
        x.movedim(1, 2),
        x[..., ::2],
        x.flatten()[1:],
        x[:0],
        x[0, 0, 0, 0],
    ):
        masks = Masks(2, one)
        masks[1].copy_(one > 0.5)
        assert masks.shape == one.shape
        assert masks[1].stride() == torch.empty_like(one).stride()
        assert masks.counts().tolist() == [0, (one > 0.5).sum()]


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
def test_select_channels(channels_last: bool) -> None:
    torch.manual_seed(0)
    x, channels = torch.randn(3, 20, 5, 4), torch.randperm(20)[:7]
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for values, dim in ((x, -3), (x, 1), (x[0], -3), (x[:, :, 0, 0], -1), (x[0, :, 0, 0], -1)):
        chosen = select_channels(values, channels, dim)
        assert torch.equal(chosen, values.index_select(dim, channels))
    assert select_channels(x, channels, -3).is_contiguous(memory_format=torch.channels_last) == channels_last
