"""Networks, expectations and loops shared by the tests of activations."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import (
    Activation,
    ExPrune,
    Heuristic,
    Prefix,
    Recorder,
    Site,
    SiteStatistics,
    find_sites,
    register_activation,
)
from exprune.core.calls.activations import ACTIVATION_CALLS
from tests.core.brute_force import conv_terms, linear_terms
from tests.core.networks import by_name, scramble

Function = Callable[[Tensor], Tensor]


class QuickGELU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(1.702 * z)


class SquaredReLU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z).square()


class OwnReLU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * (z > 0)


class Block(nn.Module):
    """A stem whose tanh makes no zeros; the layer under test, optionally with BatchNorm and residual; and a head.

    Args:
        activation: What the layer feeds, a function or a module.
    """

    def __init__(
        self, activation: Function | nn.Module, conv: bool = False, norm: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.activation, self.residual = activation, residual
        if conv:
            self.stem, self.layer = nn.Conv2d(2, 9, 1), nn.Conv2d(9, 4, 3, stride=2, padding=1)
            self.norm, self.head = nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Conv2d(4, 3, 1)
        else:
            self.stem, self.layer = nn.Linear(2, 9), nn.Linear(9, 4)
            self.norm, self.head = nn.BatchNorm1d(4) if norm else nn.Identity(), nn.Linear(4, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.stem(x))

    def z(self, x: Tensor) -> Tensor:
        """The pre-activation."""
        hidden = self.hidden(x)
        z = self.norm(self.layer(hidden))
        if self.residual:
            z = z + (hidden[:, :4, ::2, ::2] if hidden.dim() == 4 else hidden[:, :4])
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.z(x)))


class Chosen(nn.Module):
    """The layers that the networks of the cases below consist of; ``rest`` selects them."""

    def __init__(self, rest: Callable[["Chosen", Tensor], Any]) -> None:
        super().__init__()
        self.rest = rest
        self.stem, self.layer, self.shortcut = nn.Linear(2, 9), nn.Linear(9, 6), nn.Linear(9, 6)
        self.gate, self.up, self.both, self.down = nn.Linear(9, 6), nn.Linear(9, 6), nn.Linear(9, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.rest(self, torch.tanh(self.stem(x)))


def batch(conv: bool = False, inputs: int = 6) -> Tensor:
    return torch.randn(inputs, 2, 7, 7) if conv else torch.randn(inputs, 2)


def layer_of(model: nn.Module, x: Tensor, name: str = "layer") -> Site:
    return by_name(find_sites(model, x))[name]


@contextmanager
def registered(function: Callable) -> Iterator[None]:
    register_activation(function)
    try:
        yield
    finally:
        ACTIVATION_CALLS.discard(function)


STAGES = (2, 4, 6, 50)

E = torch.arange(-8, 8.001, 0.08, dtype=torch.float64)  # of a standard normal variable

DENSITY = torch.exp(-E * E / 2) / torch.exp(-E * E / 2).sum()

BEYOND = 10 * (math.sinh(7) / 10) ** (torch.arange(1, 41, dtype=torch.float64) / 40)

FAR = torch.cat([-BEYOND.flip(0), torch.arange(-10, 10.001, 0.1, dtype=torch.float64), BEYOND])


def near(mean: float, point: float, sd: float) -> bool:
    """Whether a value is so near to a threshold that both decisions are right, because tables are interpolated."""
    return abs(mean - point) < 0.04 * math.hypot(sd, mean)


ACTIVATIONS: dict[str, Function | nn.Module] = {
    "gelu": F.gelu,
    "silu": nn.SiLU(inplace=True),
    "softplus": F.softplus,
    "squared relu": SquaredReLU(),
    "leaky_relu": F.leaky_relu,
}


def squares_and_errors(f: Function, mean: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """E f(z)^2 and E (f(z) - f(mean))^2 for normal z with each mean, by summing over a dense grid."""
    values = f((mean[:, None] + sd * E).clone())
    at = f(mean.clone())[:, None]
    return (values**2 * DENSITY).sum(1), ((values - at) ** 2 * DENSITY).sum(1)


def first_at_least(values: Tensor, bar: Tensor | float, at: Tensor) -> float:
    """Where the values first reach the bar from the left; -inf if they begin there, inf if they never reach it."""
    above = (values - bar).tolist()
    for i, value in enumerate(above):
        if value >= 0:
            if i == 0:
                return -math.inf
            part = above[i - 1] / (above[i - 1] - value)
            return float(at[i - 1] + part * (at[i] - at[i - 1]))
    return math.inf


@dataclass(frozen=True)
class Rule:
    """When and with what a neuron stops if the alternative is to compute all the rest."""

    f: Function
    gradient: float
    left: float
    spared: int
    lam: float
    predict: bool

    def points(self, sd: float, scale: float = 1.0) -> tuple[float, float]:
        """The expectations below which it stops, and below which it outputs 0 if it does.

        ``scale`` is that of the costs in the comparison.
        """
        mean = FAR * sd
        squares, errors = (self.gradient / 2 * cost for cost in squares_and_errors(self.f, mean, sd))
        stop = squares.minimum(errors + self.lam * self.spared) if self.predict else squares
        zero = first_at_least(squares - errors, self.lam * self.spared * scale, mean) if self.predict else math.inf
        return first_at_least(stop, self.lam * (self.left + self.spared) * scale, mean), zero

    def sides(self, mean: float, sd: float) -> tuple[bool | None, bool | None]:
        """Whether it stops, and whether with 0; None if both decisions are right because the costs are nearly equal."""
        stop, zero = _bounds(self, round(sd, 12))
        return _side(mean, stop, sd), _side(mean, zero, sd)


@lru_cache(maxsize=1000)
def _bounds(rule: Rule, sd: float) -> list[tuple[float, ...]]:
    return list(zip(*(rule.points(sd, scale) for scale in (0.98, 1.0, 1.02)), strict=True))


def _side(mean: float, points: Sequence[float], sd: float) -> bool | None:
    below = {mean < point for point in points}
    if len(below) > 1 or any(near(mean, point, sd) for point in points):
        return None
    return below.pop()


@dataclass
class Row:
    """One row: the terms of every neuron in the order of evaluation, and what each stage knows of it."""

    terms: list[list[float]]  # (outputs, N)
    r: list[float]
    z: list[float]
    rest: dict[int, float] = field(default_factory=dict)
    norm: float = 0.0


def rows_of(model: Block, x: Tensor, by_input: bool) -> list[Row]:
    weight = model.layer.weight.detach()
    with torch.no_grad():
        hidden, conv = model.hidden(x), weight.dim() == 4
        if conv:
            terms = conv_terms(hidden, weight, (2, 2), (1, 1), (1, 1)).movedim(1, -2).flatten(0, -3)
            patches = F.unfold(hidden, 3, 1, 1, 2).movedim(1, 2).reshape(len(terms), 9, 9)
        else:
            terms, patches = linear_terms(hidden, weight), hidden[..., None]
        z = model.z(x).movedim(1, -1).flatten(0, -2)
        if isinstance(model.norm, nn.modules.batchnorm._BatchNorm):
            terms = terms * (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt())[:, None]
        r = z - terms.sum(-1)
    norms = [float((weight[:, c] ** 2).sum()) for c in range(9)]
    rows = []
    for t, patch, add, value in zip(terms.tolist(), patches.tolist(), r.tolist(), z.tolist(), strict=True):
        energy = [sum(v * v for v in values) * norm for values, norm in zip(patch, norms, strict=True)]
        order = sorted(range(9), key=lambda c: (-energy[c], c)) if by_input else range(9)
        row = Row([[of[c] for c in order] for of in t], add, value)
        row.norm = math.sqrt(sum(energy))
        row.rest = {n: math.sqrt(math.fsum(energy[c] for c in list(order)[n:])) for n in STAGES[:3]}
        rows.append(row)
    return rows


@dataclass
class Known:
    """A block, its site, and its statistics."""

    model: Block
    x: Tensor
    site: Site
    measured: dict[str, SiteStatistics]
    rows: list[Row]
    by_input: bool

    @property
    def weights_per_term(self) -> int:
        return self.site.weights_per_term

    @property
    def lam(self) -> float:
        """A price at which some neurons stop and some do not."""
        z = torch.tensor([row.z for row in self.rows], dtype=torch.float64)
        return 0.1 * float(self.model.activation(z.clone()).var()) / (2 * 9 * self.weights_per_term)

    def expected(self, row: Row, j: int, k: int) -> tuple[float, float]:
        """Mean and standard deviation of neuron j after stage k, by the regression line."""
        of, n = self.measured["layer"], STAGES[k]
        slope, offset, sd = (float(values[k, j]) for values in (of.slope, of.offset, of.sd))
        s = sum(row.terms[j][:n])
        if not self.by_input:
            return slope * s + offset + row.r[j], sd
        usual = float(of.rest[k])
        rest, share = row.rest[n], row.rest[n] / row.norm
        width = usual * 2 ** (min(max(round(8 * math.log2(rest / usual)), -32), 32) / 8)
        return s * (1 + slope * share) + rest * offset + row.r[j], width * sd


@lru_cache(maxsize=2)
def known(activation: str, conv: bool, by_input: bool, norm: bool = False, residual: bool = False) -> Known:
    torch.manual_seed(0)
    model = scramble(Block(ACTIVATIONS[activation], conv, norm, residual).double())
    with torch.no_grad():  # so that sums reach to where an activation is flat
        model.layer.weight.mul_(6.0)
        model.layer.bias.sub_(1.0)
    x = batch(conv, 8 if conv else 120).double()
    sites = [site for site in find_sites(model, x) if site.name == "layer"]
    with torch.no_grad(), Recorder(sites, STAGES, {"layer": "input"} if by_input else None) as recorder:
        for part in x.split(5 if conv else 70):
            model(part)
    gradient = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    measured = {"layer": replace(recorder.statistics()["layer"], gradient=gradient)}
    return Known(model, x, sites[0], measured, rows_of(model, x, by_input), by_input)


def recorded(model: Block, x: Tensor, run: ExPrune) -> list[list[float]]:
    """What reaches the head in a run (rows, channels)."""
    seen = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad(), run:
        model(x)
    hook.remove()
    return seen[0].movedim(1, -1).flatten(0, -2).tolist()


NAMED: dict[str, Activation] = {
    "gelu": Activation("gelu", F.gelu),
    "silu": Activation("silu", F.silu),
    "softplus": Activation("softplus", F.softplus),
    "squared relu": Activation("squared relu", lambda z: z.clamp(min=0) ** 2),
    "leaky_relu": Activation("leaky_relu", F.leaky_relu),
    "relu": Activation("relu", F.relu),
}


def column(*values: float) -> Tensor:
    """Of shape (stages, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def ones() -> Tensor:
    return torch.ones(1, dtype=torch.float64)


class Gated(nn.Module):
    """A gated feed-forward block with one or two matrices; the factor is computed before or after the gate."""

    def __init__(self, fused: bool, factor_first: bool = False) -> None:
        super().__init__()
        self.fused, self.factor_first = fused, factor_first
        self.stem, self.down = nn.Linear(2, 8), nn.Linear(5, 4)
        if fused:
            self.both = nn.Linear(8, 10)
        else:
            self.gate, self.up = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        if self.fused:
            parts = self.both(h).chunk(2, dim=-1)
            gate, up = parts[::-1] if self.factor_first else parts
        elif self.factor_first:
            up, gate = self.up(h), self.gate(h)
        else:
            gate, up = self.gate(h), self.up(h)
        return self.down(F.silu(gate) * up)

    def names(self) -> tuple[str, str]:
        """The names of the gate and of its factor."""
        if not self.fused:
            return "gate", "up"
        return ("both[5:10]", "both[0:5]") if self.factor_first else ("both[0:5]", "both[5:10]")

    def matrices(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight and bias of the gate and of its factor."""
        if not self.fused:
            return (self.gate.weight, self.gate.bias), (self.up.weight, self.up.bias)
        parts = list(zip(self.both.weight.chunk(2), self.both.bias.chunk(2), strict=True))
        return (parts[1], parts[0]) if self.factor_first else (parts[0], parts[1])


class Rough(Heuristic):
    """A decision that a loop can repeat exactly, from the partial sum and what is added to it."""

    def __init__(self, order: str | None = None, predict: bool = False) -> None:
        super().__init__()
        self.stages, self.predicts, self._order = (2, 4), predict, order

    def order(self, site: Site) -> str | None:
        return self._order

    def refuses(self, site: Site) -> None:
        return None

    def stop(self, seen: Prefix) -> Tensor:
        so_far = seen.s + seen.r
        return so_far < 0.1 if seen.site.before_activation else so_far.abs() < 0.3

    def prediction(self, seen: Prefix) -> Tensor:
        so_far = seen.s + seen.r
        return so_far.masked_fill(so_far < -0.1, -math.inf) if seen.site.before_activation else so_far


def by_counts(run: ExPrune) -> dict[str, Any]:
    return {count.site.name: count for count in run.flops.sites}


def exceeding(f: Function, mean: Tensor, sd: Tensor | float, tolerance: float) -> Tensor:
    """The probability that |f(z)| exceeds the tolerance, for normal z with each mean."""
    z = torch.arange(-8, 8.0001, 0.01, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    return ((f(mean[:, None] + sd * z).abs() > tolerance) * density).sum(1)
