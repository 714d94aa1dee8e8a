"""Regression of a neuron's full sum on its partial sums: a line and its spread (docs/method.md, section 8)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exprune.core.errors import SettingError

_FEWEST = 100  # rows: the standard deviation of a residual is then known to 7 %
_FLOOR = 0.01  # smallest standard deviation and gradient, as a share of the layer's median


class TooFewRowsError(SettingError):
    """A site was reached by too few rows, or only by zeros."""


@dataclass(frozen=True)
class SiteStatistics:
    """Calibration statistics of a site: how a neuron's partial sum s predicts the sum of all its terms.

    The prediction is a line, ``slope * s + offset``, with a residual standard deviation ``sd``. In the order of each
    input, the remaining terms are predicted in units of their norm, ``rest``, one number for each row and stage;
    ``norm`` is the norm of all terms of the row. The prediction is then ``s + rest * (slope * s / norm + offset)``,
    with the standard deviation ``rest * sd``.

    Attributes:
        stages: How many terms are evaluated before each test, ascending.
        slope: Slopes of the lines (stages, outputs), float64.
        offset: Offsets of the lines (stages, outputs), float64.
        sd: Residual standard deviations (stages, outputs), float64.
        order: The order of the terms (N,), or one per neuron (outputs, N). None means the model's own order;
            ``"input"`` the order of each input.
        gradient: The mean squared gradient of the loss at each output (outputs,), float64; None if not measured.
        rest: The root mean square of the rows' ``rest`` (stages,), float64; None unless in the order of each input.
        magnitudes: Quantiles of the norms of the terms' inputs (for a convolution, of patches), at equal steps,
            accurate to 0.3 % (1025,), float64; None unless in the order of each input.
        gate: The root mean square of the gate that multiplies each output (outputs,), float64; None without a gate.
        outputs: Quantiles of the absolute outputs of the activation, at equal steps, accurate to 6 % (1025,), float64;
            only for a Linear layer before an activation, in the order of each input.
        factor: The root mean square of the factor that multiplies each of those outputs (outputs,), float64, if a site
            computes it.
        weighed: Like ``outputs``, with each value multiplied by its neuron's factor; None without a factor.

    Raises:
        SettingError: If shapes do not fit each other.
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
                raise SettingError(f"statistics: {what} has the shape {tuple(value.shape)}, expected {tuple(shape)}")

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
        """Compute the statistics from the moments of the sums after each stage.

        Args:
            moments: The moments.
            stages: The stages.
            name: The site's name, for messages.
            order: See the attributes.
            rest: See the attributes.
            magnitudes: See the attributes.

        Raises:
            TooFewRowsError: If there were fewer than 100 rows.
            SettingError: If some rows were NaN, infinite or too large to be squared.
        """
        if moments.undefined or not moments.squares.isfinite().all():
            raise undefined(moments.undefined, moments.undefined + moments.rows, name)
        if moments.rows < _FEWEST:
            raise TooFewRowsError(
                f"calibration: {moments.rows} rows of {name}; at least {_FEWEST} are needed, take more inputs"
            )
        slope, offset, sd = moments.lines()
        return cls(tuple(stages), slope, offset, floored(sd), order, rest=rest, magnitudes=magnitudes)


def floored(values: Tensor) -> Tensor:
    """Raise values (..., outputs) to at least a small share of their median over the outputs, and above 0."""
    floor = (_FLOOR * values.median(dim=-1, keepdim=True).values).clamp(min=torch.finfo(values.dtype).tiny)
    return values.maximum(floor)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class Moments:
    """Counts, means and centred second moments of x and y per stage and output, accumulated over blocks of rows.

    Blocks are merged as in Chan, Golub and LeVeque 1983.
    """

    rows: int = 0
    count: Tensor = field(default_factory=_zero)  # rows that a stage is measured on (stages, 1)
    means: Tensor = field(default_factory=_zero)  # of x and of y (2, stages, outputs)
    squares: Tensor = field(default_factory=_zero)  # their second moments (2, stages, outputs)
    products: Tensor = field(default_factory=_zero)  # of x and y (stages, outputs)
    undefined: int = 0  # rows skipped because of NaN, infinity or values too large to be squared

    def finite(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The rows of values (rows, outputs) where the squares of the first one are finite; the others are counted."""
        if torch.linalg.vector_norm(values[0]).isfinite():
            return values
        keep = torch.linalg.vector_norm(values[0], dim=1).isfinite()
        self.undefined += int((~keep).sum())
        return tuple(value[keep] for value in values)

    def add(self, rows: int, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add x and y (rows, outputs) of each stage for a block of rows; a stage may skip some of them."""
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
        """Slope, offset and residual standard deviation of y on x (stages, outputs). The slope is 0 if x is constant.

        A stage with fewer than 100 rows takes the line of the stage before it.
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
    """The error for a site with undefined values in ``rows`` (0 if unknown) of ``of`` rows."""
    return SettingError(
        f"calibration: {rows or 'some'} of {of} rows at {name} hold NaN, infinity or numbers too large to be squared; "
        "leave those inputs out, or repair the weights"
    )
