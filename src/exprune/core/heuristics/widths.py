"""How much a row has left, to a step: what a test needs of each neuron then stands in a table (docs/method.md, 8)."""

import torch
from torch import Tensor

_STEPS, _POWERS = 8, 4  # steps to a power of 2; powers of 2 to either side of what is usual
WIDTHS = 2.0 ** (torch.arange(-_POWERS * _STEPS, _POWERS * _STEPS + 1, dtype=torch.float64) / _STEPS)
MOST = 2.0 ** (2 * _POWERS)  # times what is usual: more makes no difference
SHARES = torch.linspace(0, 1, 33, dtype=torch.float64)
NEGLIGIBLE = 1e-6  # of what is usual: below it a row is known


def width_places(widths: Tensor) -> Tensor:
    """Where in a table rows stand that have so many times as much left as is usual: 0, or behind it among WIDTHS."""
    # Of every neuron and row behind a gate: in place, and a product, which is vectorised where a fill is not.
    places = torch.log2(widths).mul_(_STEPS).round_().add_(1 + _POWERS * _STEPS).clamp_(1, len(WIDTHS))
    return places.mul_(torch.gt(widths, NEGLIGIBLE, out=torch.empty_like(widths))).long()


def share_places(rest: Tensor, norm: Tensor) -> Tensor:
    """Where among SHARES rows stand that have so much left of so much."""
    share = (rest / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(0, 1)
    return (share * (len(SHARES) - 1)).round().long()
