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


def weighed_quantile(values: Tensor, weights: Tensor, shares: Tensor | float) -> Tensor:
    """The least of some values (n,) at which those up to it have such a share of all weights (n,), or such shares."""
    values, order = values.sort()
    total = weights[order].double().cumsum(0)
    wanted = torch.as_tensor(shares, dtype=total.dtype, device=total.device) * total[-1]
    return values[torch.searchsorted(total, wanted).clamp(max=len(values) - 1)]


_SHIFT = 20  # 8 bins to a power of 2: 3 of the 23 bits of a float32's fraction are kept
_LEAST, _MOST = (int(torch.tensor(2.0**power).view(torch.int32)) >> _SHIFT for power in (-16, 8))


@dataclass
class NeuronHistogram:
    """Counts of the absolute values of each neuron of a layer, in 8 bins to a power of 2.

    What lies below 2^-16 counts as 0, what lies above 2^8 as that.
    """

    counts: Tensor | None = None  # (bins, neurons)

    def add(self, values: Tensor) -> None:
        """Count numbers (rows, neurons); rows with NaN or infinities in them are left out."""
        values = values.float()
        if not values.sum().isfinite():
            values = values[values.isfinite().all(1)]
        size, neurons = _MOST - _LEAST + 2, values.shape[1]
        bins = values.abs().view(torch.int32).bitwise_right_shift_(_SHIFT).sub_(_LEAST - 1).clamp_(0, size - 1)
        index = bins.mul_(neurons).add_(torch.arange(neurons, device=bins.device, dtype=torch.int32))
        more = torch.bincount(index.flatten(), minlength=size * neurons).int().cpu().view(size, neurons)
        self.counts = more if self.counts is None else self.counts + more

    def quantiles(self, steps: int, factors: Tensor | None = None) -> Tensor:
        """(steps + 1,) float64: as of :class:`Histogram`, of all numbers times their neuron's factor (neurons,).

        Each number is taken to be in the middle of its bin.
        """
        assert self.counts is not None  # asked for what was counted
        neurons = self.counts.shape[1]
        middles = ((torch.arange(_LEAST - 1, _MOST + 1) << _SHIFT) + (1 << _SHIFT - 1)).int().view(torch.float32)
        middles[0] = 0
        values = middles.double()[:, None] * (torch.ones(neurons) if factors is None else factors.cpu())
        shares = torch.arange(steps + 1, dtype=torch.float64) / steps
        counted = self.counts.flatten() > 0
        return weighed_quantile(values.flatten()[counted], self.counts.flatten()[counted], shares)
