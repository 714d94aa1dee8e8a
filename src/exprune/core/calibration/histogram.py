"""Quantiles of many numbers without keeping them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_DROPPED = 16  # of the 23 bits of a float32's fraction: 128 bins to a power of 2
_BINS = 2 ** (31 - _DROPPED)


@dataclass
class Histogram:
    """Counts of numbers that are not negative, in bins as wide as a 128th of what is in them; 0 has its own.

    A float32's bits, read as an integer, are ordered as the numbers are, so its first ones number the bins.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64))

    def add(self, values: Tensor) -> None:
        """Count float32 numbers of any shape."""
        bits = values.flatten().view(torch.int32)
        above = (bits >> _DROPPED) + (bits & (2**_DROPPED - 1) > 0)  # the bin's upper end, which is in it
        self.counts = self.counts + torch.bincount(above, minlength=_BINS).to(self.counts.device)

    def quantiles(self, steps: int) -> Tensor:
        """(steps + 1,) float64: what so many of the numbers are not above, by equal shares from none to all of them.

        The upper ends of their bins; the first is the upper end of the bin with the least of all numbers.
        """
        total = self.counts.cumsum(0)
        wanted = (torch.arange(steps + 1, dtype=torch.float64) / steps * int(total[-1])).ceil().clamp(min=1)
        bins = torch.searchsorted(total, wanted.long())
        return (bins << _DROPPED).int().view(torch.float32).double()
