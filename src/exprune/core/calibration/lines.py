"""How partial sums foretell a neuron's pre-activation: a line each, and its spread (docs/method.md, section 8)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exprune.core.errors import SettingError

_FEWEST = 100  # rows: the standard deviation of a residual is then known to 7 %
_FLOOR = 0.01  # of the layer's median: what no standard deviation and no gradient is taken to lie below


class TooFewRowsError(SettingError):
    """A site that too few rows reached, or nothing but zeros."""


@dataclass(frozen=True)
class SiteStatistics:
    """Of every neuron of a site the line from its partial sum s to the sum of all its terms, ``slope * s + offset``.

    In the order of each input it foretells what is left by the norm of what is left, ``rest``, one number for each row
    and stage, beside ``norm``, that of all its terms: ``s + rest * (slope * s / norm + offset)``, give or take
    ``rest * sd``.

    Attributes:
        stages: the terms evaluated before each test, ascending.
        slope, offset: (stages, outputs) float64.
        sd: likewise, the standard deviation of what the line leaves unexplained.
        order: in which the terms are evaluated, (N,) or one per neuron (outputs, N); None: the model's own;
            ``"input"``: that of each input.
        gradient: (outputs,) float64, the mean squared gradient of the loss at the neuron's output; None: not measured.
        rest: (stages,) float64, of the order of each input the root mean square of the rows' ``rest``; None: another
            order.
        magnitudes: (1025,) float64, of the order of each input the quantiles of the norms of its terms' inputs (of a
            convolution patches), in equal steps, to 0.3 %; None: another order.
        gate: (outputs,) float64, the root mean square of what the neuron's output is multiplied by, of layers that are
            multiplied with a gate's output; None: of others.
        outputs: (1025,) float64, of a Linear before an activation, in the order of each input, the quantiles of the
            absolute values of what that makes of its outputs, in equal steps, to 6 %.
        factor: (outputs,) float64, the root mean square of what those are multiplied by, where a site gives it.
        weighed: (1025,) float64, where there is a factor: as ``outputs``, of each value times its neuron's factor.
    """

    stages: tuple[int, ...]
    slope: Tensor
    offset: Tensor
    sd: Tensor
    order: Tensor | str | None = None
    gradient: Tensor | None = None
    rest: Tensor | None = None
    magnitudes: Tensor | None = None
    gate: Tensor | None = None
    outputs: Tensor | None = None
    factor: Tensor | None = None
    weighed: Tensor | None = None

    def __post_init__(self) -> None:
        outputs = self.slope.shape[-1:]
        lines, each = (len(self.stages), *outputs), (len(self.stages),)
        for what, shape in {"slope": lines, "offset": lines, "sd": lines, "gradient": outputs, "rest": each}.items():
            value = getattr(self, what)
            if value is not None and value.shape != shape:
                raise SettingError(f"statistics: {what} of shape {tuple(value.shape)}, expected {tuple(shape)}")

    @classmethod
    def of(
        cls,
        moments: "Moments",
        stages: Sequence[int],
        name: str,
        order: Tensor | str | None,
        rest: Tensor | None = None,
        magnitudes: Tensor | None = None,
    ) -> "SiteStatistics":
        """From the moments of the sums after these stages.

        Raises:
            TooFewRowsError: they are of fewer than a hundred rows.
            SettingError: some rows were NaN, infinite or too large to be squared.
        """
        if moments.undefined or not moments.squares.isfinite().all():
            raise undefined(moments.undefined, moments.undefined + moments.rows, name)
        if moments.rows < _FEWEST:
            raise TooFewRowsError(f"calibration: {moments.rows} rows of {name}; at least {_FEWEST}, take more inputs")
        slope, offset, sd = moments.lines()
        return cls(tuple(stages), slope, offset, floored(sd), order, rest=rest, magnitudes=magnitudes)


def floored(values: Tensor) -> Tensor:
    """Values (..., outputs), none below a small share of the median over the outputs, and all above 0."""
    floor = (_FLOOR * values.median(dim=-1, keepdim=True).values).clamp(min=torch.finfo(values.dtype).tiny)
    return values.maximum(floor)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class Moments:
    """After each stage count, means and centred second moments per output of some x and y, of blocks of rows.

    Merged as in Chan, Golub, LeVeque 1983.
    """

    rows: int = 0
    count: Tensor = field(default_factory=_zero)  # (stages, 1): rows that a stage is measured on
    means: Tensor = field(default_factory=_zero)  # (2, stages, outputs): of x, of y
    squares: Tensor = field(default_factory=_zero)  # likewise, their second moments
    products: Tensor = field(default_factory=_zero)  # (stages, outputs): x y
    undefined: int = 0  # rows left out, for NaN, inf or what cannot be squared in them

    def finite(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Those rows of values (rows, outputs) where the first one's squares are finite; the others are noted."""
        if torch.linalg.vector_norm(values[0]).isfinite():
            return values
        keep = torch.linalg.vector_norm(values[0], dim=1).isfinite()
        self.undefined += int((~keep).sum())
        return tuple(value[keep] for value in values)

    def add(self, rows: int, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Of each stage x and y (rows, outputs) of the same block of rows; a stage may leave some out."""
        counts, means, squares, products = [], [], [], []
        for x, y in pairs:
            if not (seen := len(x)):
                x = y = x.new_zeros(1, x.shape[1])
            both = torch.stack([x.mean(0), y.mean(0)])
            x, y = x - both[0], y - both[1]
            counts.append(seen)
            means.append(both.double())
            squares.append(torch.stack([(x * x).sum(0), (y * y).sum(0)]).double())
            products.append((x * y).sum(0).double())
        self.rows += rows
        mean, square = torch.stack(means, 1), torch.stack(squares, 1)
        more = torch.tensor(counts, dtype=torch.float64, device=mean.device)[:, None]
        all_of_them = (self.count + more).clamp(min=1)
        apart, weight = mean - self.means, self.count * more / all_of_them
        self.squares = self.squares + square + weight * apart**2
        self.products = self.products + torch.stack(products) + weight * apart[0] * apart[1]
        self.means = self.means + apart * (more / all_of_them)
        self.count = self.count + more

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, offset and residual standard deviation of y over x, (stages, outputs); no slope where x is constant.

        A stage of fewer than a hundred rows is taken to be as the one before it.
        """
        xx, yy = self.squares
        slope = torch.where(xx > 0, self.products / xx.clamp(min=torch.finfo(xx.dtype).tiny), 0)
        left = (yy - slope * self.products).clamp(min=0) / (self.count - 2).clamp(min=1)
        line = torch.stack([slope, self.means[1] - slope * self.means[0], left.sqrt()])
        for stage in range(1, line.shape[1]):
            if self.count[stage] < _FEWEST:
                line[:, stage] = line[:, stage - 1]
        return line[0], line[1], line[2]


def undefined(rows: int, of: int, name: str) -> SettingError:
    """What is to be said where so many of a site's rows (0: nobody knows how many) cannot be reckoned with."""
    return SettingError(
        f"calibration: {rows or 'some'} of {of} rows at {name} hold NaN, inf or numbers too large to be squared; leave "
        "those inputs out, or mend the weights"
    )
