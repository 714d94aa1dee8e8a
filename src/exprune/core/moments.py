"""How partial sums foretell a neuron's pre-activation, measured on calibration inputs (docs/method.md, section 8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune.core.errors import SettingError
from exprune.core.heuristics import Heuristic, Prefix
from exprune.core.sites import Site

_FEWEST = 100  # rows: the standard deviation of a residual is then known to 7 %
_POSITIONS = 64  # of an input that are enough
_FLOOR = 0.01  # of the layer's median: what no standard deviation and no gradient is taken to lie below


@dataclass(frozen=True)
class SiteStatistics:
    """Of every neuron of a site the line from its partial sum s to the sum of all its terms, ``slope * s + offset``.

    Attributes:
        stages: the terms evaluated before each test, ascending.
        slope, offset: (stages, outputs) float64.
        sd: likewise, the standard deviation of what the line leaves unexplained.
        order: in which the terms are evaluated, (N,) or one per neuron (outputs, N); None: the model's own.
        gradient: (outputs,) float64, the mean squared gradient of the loss at the neuron's output; None: not measured.
    """

    stages: tuple[int, ...]
    slope: Tensor
    offset: Tensor
    sd: Tensor
    order: Tensor | None = None
    gradient: Tensor | None = None

    @classmethod
    def of(cls, moments: Mapping[int, "Moments"], name: str, order: Tensor | None) -> "SiteStatistics":
        """From the moments after each stage.

        Raises:
            SettingError: they are of too few rows.
        """
        rows = next(iter(moments.values())).count
        if rows < _FEWEST:
            raise SettingError(f"calibration: {rows} rows of {name}; at least {_FEWEST}, take more inputs")
        lines = [of.line() for of in moments.values()]
        slope, offset, sd = (torch.stack(values) for values in zip(*lines, strict=True))
        return cls(tuple(moments), slope, offset, floored(sd), order)


class Recorder(Heuristic):
    """Stops nothing; takes the moments of partial and full sums in one pass, keeping no activations.

    Of inputs with many positions (pixels, tokens) it looks at 64 or a few more, evenly spread.

    Run it under :class:`~exprune.core.ExPrune` over the calibration inputs, then ask for :meth:`statistics`.

    Args:
        orders: of evaluation, by site; sites without one keep the model's own.
    """

    needs_full = True

    def __init__(self, stages: Sequence[int], orders: Mapping[str, Tensor | None] | None = None) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.orders = orders or {}
        self._moments: dict[str, dict[int, Moments]] = {}

    def order(self, site: Site) -> Tensor | None:
        return self.orders.get(site.name)

    def stop(self, seen: Prefix) -> Tensor:
        s, full, r = (_sample(values, seen) for values in (seen.s, seen.full, seen.r))
        if len(s):
            stages = self._moments.setdefault(seen.site.name, {})
            stages.setdefault(seen.n, Moments()).add(s, full - r)
        return torch.zeros_like(seen.s, dtype=torch.bool)

    def statistics(self) -> dict[str, SiteStatistics]:
        """By site.

        Raises:
            SettingError: too few rows (images times positions, nodes, tokens) reached a site.
        """
        return {name: SiteStatistics.of(of, name, self.orders.get(name)) for name, of in self._moments.items()}


def _sample(values: Tensor | float, seen: Prefix) -> Tensor:
    """(rows, outputs) of values that broadcast with ``seen.s``: some positions (pixels, tokens) of each input."""
    dim = -1 if seen.site.kind == "linear" else -3

    def some(values: Tensor) -> Tensor:
        values = values.expand_as(seen.s).movedim(dim, -1)
        if values.dim() > 2:
            values = values.flatten(1, -2)
            count = values.shape[1]
            # An odd step: every column of an image has its turn.
            values = values[:, :: 1 if count <= _POSITIONS else count // _POSITIONS | 1]
        return values.flatten(0, -2)

    chosen = some(torch.as_tensor(values, dtype=seen.s.dtype, device=seen.s.device))
    return chosen if seen.rows is None else chosen[some(seen.rows)[:, 0]]


def floored(values: Tensor) -> Tensor:
    """Values (..., outputs), none below a small share of the median over the outputs, and all above 0."""
    floor = (_FLOOR * values.median(dim=-1, keepdim=True).values).clamp(min=torch.finfo(values.dtype).tiny)
    return values.maximum(floor)


@dataclass
class Moments:
    """Count, means and centred second moments of pairs (s, z) per output, merged as in Chan, Golub, LeVeque 1983."""

    count: int = 0
    mean: Tensor | float = 0.0  # (2, outputs)
    products: Tensor | float = 0.0  # (3, outputs): s s, s z, z z

    def add(self, s: Tensor, z: Tensor) -> None:
        """Pairs of shape (rows, outputs)."""
        means = torch.stack([s.mean(0), z.mean(0)])
        s, z = s - means[0], z - means[1]
        products = torch.stack([(s * s).sum(0), (s * z).sum(0), (z * z).sum(0)]).double()
        means, more = means.double(), len(s)
        apart = means - self.mean
        weight = self.count * more / (self.count + more)
        between = torch.stack([apart[0] ** 2, apart[0] * apart[1], apart[1] ** 2])
        self.products = self.products + products + weight * between
        self.mean = self.mean + apart * (more / (self.count + more))
        self.count += more

    def line(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, offset and residual standard deviation of z over s; no slope where s does not vary."""
        ss, sz, zz = self.products
        slope = torch.where(ss > 0, sz / ss.clamp(min=torch.finfo(ss.dtype).tiny), 0)
        left = (zz - slope * sz).clamp(min=0) / (self.count - 2)
        return slope, self.mean[1] - slope * self.mean[0], left.sqrt()


def data_rows(values: Tensor, dim: int, rows: Tensor | None) -> Tensor:
    """(rows, channels) of values with the channels at ``dim``: positions and inputs that are data.

    ``rows`` (bool) says which: over the leading dimensions of a Linear, the batch of a Conv2d; None: all.
    """
    values = values.movedim(dim, -1)
    if rows is None:
        return values.flatten(0, -2)
    rows = rows.flatten().to(values.device)
    return values.flatten(0, -2)[rows] if dim == -1 else values[rows].flatten(0, -2)
