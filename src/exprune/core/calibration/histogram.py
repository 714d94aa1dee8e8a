"""Histograms, to compute quantiles of many numbers without storing them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_DROPPED = 16  # of the 23 fraction bits of a float32, which leaves 128 bins per power of 2
_BINS = 2 ** (31 - _DROPPED)


@dataclass
class Histogram:
    """Counts of nonnegative numbers in bins whose width is 1/128 of their values; 0 has a bin of its own.

    The bits of a nonnegative float32, read as an integer, have the same order as the numbers. So the leading bits are
    the bin's index.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64))

    def add(self, values: Tensor) -> None:
        """Count float32 numbers of any shape."""
        bits = values.flatten().view(torch.int32)
        above = (bits >> _DROPPED) + (bits & (2**_DROPPED - 1) > 0)  # the upper end of a bin belongs to it
        self.counts = self.counts + torch.bincount(above, minlength=_BINS).to(self.counts.device)

    def quantiles(self, steps: int) -> Tensor:
        """Quantiles at equally spaced shares from 0 to 1 (steps + 1,), float64.

        They are the upper ends of bins. The first is the upper end of the bin that holds the smallest number.
        """
        total = self.counts.cumsum(0)
        wanted = (torch.arange(steps + 1, dtype=torch.float64) / steps * int(total[-1])).ceil().clamp(min=1)
        bins = torch.searchsorted(total, wanted.long())
        return (bins << _DROPPED).int().view(torch.float32).double()


def weighed_quantile(values: Tensor, weights: Tensor, shares: Tensor | float) -> Tensor:
    """The smallest of ``values`` (n,) at which the weights (n,) up to it reach each share of their total."""
    values, order = values.sort()
    total = weights[order].double().cumsum(0)
    wanted = torch.as_tensor(shares, dtype=total.dtype, device=total.device) * total[-1]
    return values[torch.searchsorted(total, wanted).clamp(max=len(values) - 1)]


_SHIFT = 20  # keeps 3 of the 23 fraction bits of a float32, which makes 8 bins per power of 2
_LEAST, _MOST = (int(torch.tensor(2.0**power).view(torch.int32)) >> _SHIFT for power in (-16, 8))


@dataclass
class NeuronHistogram:
    """Counts of the absolute values of each neuron of a layer, in 8 bins per power of 2.

    Values below 2^-16 count as 0, and values above 2^8 as 2^8.
    """

    counts: Tensor | None = None  # (bins, neurons)

    def add(self, values: Tensor) -> None:
        """Count numbers (rows, neurons). Rows that contain NaN or infinity are skipped."""
        values = values.float()
        if not values.sum().isfinite():
            values = values[values.isfinite().all(1)]
        size, neurons = _MOST - _LEAST + 2, values.shape[1]
        bins = values.abs().view(torch.int32).bitwise_right_shift_(_SHIFT).sub_(_LEAST - 1).clamp_(0, size - 1)
        index = bins.mul_(neurons).add_(torch.arange(neurons, device=bins.device, dtype=torch.int32))
        more = torch.bincount(index.flatten(), minlength=size * neurons).int().cpu().view(size, neurons)
        self.counts = more if self.counts is None else self.counts + more

    def quantiles(self, steps: int, factors: Tensor | None = None) -> Tensor:
        """Quantiles as in `Histogram`, of all numbers times their neuron's factor (neurons,): (steps + 1,) float64.

        Each number is assumed to be in the middle of its bin.
        """
        assert self.counts is not None  # add() was called before
        neurons = self.counts.shape[1]
        middles = ((torch.arange(_LEAST - 1, _MOST + 1) << _SHIFT) + (1 << _SHIFT - 1)).int().view(torch.float32)
        middles[0] = 0
        values = middles.double()[:, None] * (torch.ones(neurons) if factors is None else factors.cpu())
        shares = torch.arange(steps + 1, dtype=torch.float64) / steps
        counted = self.counts.flatten() > 0
        return weighed_quantile(values.flatten()[counted], self.counts.flatten()[counted], shares)
