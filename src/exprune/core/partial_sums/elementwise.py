"""Passes over a layer's outputs that torch does not vectorise on a CPU, written in forms that it does."""

from collections.abc import Iterator

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_GROUPS = 128  # words whose bytes are added in place; at most 255, so that a byte does not overflow


def below(values: Tensor, bound: Tensor | float) -> Tensor:
    """``values < bound``, 2 to 3 times faster; the bound broadcasts to the shape of the values.

    Comparisons into floats are vectorised, comparisons into bools are not.
    """
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return values < bound
    return torch.lt(values, bound, out=torch.empty_like(values)).bool()


def per_row(mask: Tensor) -> Tensor:
    """The number of True values in each row (R, 1) int64 of a bool (R, M); 2 to 4 times as fast as ``mask.sum(1)``."""
    return mask.view(torch.uint8).sum(1, keepdim=True, dtype=torch.int32).long()


def select_channels(x: Tensor, channels: Tensor, dim: int) -> Tensor:
    """``x.index_select(dim, channels)``; 9 times faster if x is channels_last, as a matrix with one row per pixel."""
    last = x.movedim(dim, -1)
    if not last.is_contiguous():
        return x.index_select(dim, channels)
    rows = last.flatten(0, -2) if last.dim() > 1 else last[None]
    return rows.gather(1, channels.expand(len(rows), -1)).view(*last.shape[:-1], -1).movedim(-1, dim)


class Masks:
    """Several bool masks of one shape that are written, then counted together, 8 values at a time.

    Args:
        count: The number of masks.
        like: A tensor of their shape and memory layout.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self.shape, size = like.shape, like.numel()
        padded = max(1, -(-size // (8 * _GROUPS))) * 8 * _GROUPS
        self._all = torch.zeros(count, padded, dtype=torch.bool, device=like.device)
        strides = torch.empty_like(like, device="meta").stride()  # dense
        self._masks: list[Tensor] = [mask.as_strided(like.shape, strides) for mask in self._all]

    def __getitem__(self, index: int) -> Tensor:
        return self._masks[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._masks)

    def counts(self) -> Tensor:
        """The number of True values of each mask (count,), int64."""
        words = self._all.view(torch.int64).view(len(self._all), _GROUPS, -1)
        return words.sum(1).view(torch.uint8).sum(1)


def write_zeros(out: Tensor, where: Tensor) -> None:
    """``out.masked_fill_(where, 0)``; 4 times faster, because bit masks are vectorised and selections are not."""
    keep = where.view(torch.int8) - 1  # True becomes 0 (no bits), False becomes -1 (all bits)
    bits = _BITS[out.element_size()]
    out.view(bits).bitwise_and_(keep.to(bits))
