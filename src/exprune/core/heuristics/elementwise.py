"""Stopping a neuron whose activation is any elementwise function, no ReLU (docs/method.md, section 10).

What is expected of f(z), z normally distributed, depends on the mean and the standard deviation of z. It is tabulated
once for an activation, by rows of one standard deviation each, on a grid of means in standard deviations, which is fine
about 0 and reaches far: a neuron that is nearly known may be stopped although it lies many of its deviations from 0.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from exprune.core.calls.activations import Activation
from exprune.core.heuristics.stopping import gauss_hermite

_DEVIATIONS = 2.0 ** (torch.arange(-48, 65, dtype=torch.float64) / 8)  # from 1/64 to 256; narrower ones are as wide
_PLACES = torch.linspace(-7, 7, 161, dtype=torch.float64)
_MEANS = _PLACES.sinh()  # in standard deviations
_NODES, _REVEALED = 48, 9  # of the quadratures over f, and over what a stage may reveal
_BLOCK = 64  # neurons at a time
_FINE = torch.linspace(-64, 64, 2**15 + 1, dtype=torch.float64)  # where |f| is compared with a tolerance


def thresholds(
    activation: Activation,
    gradient: Tensor,
    sd: Tensor,
    left: Tensor,
    spared: int,
    lam: float,
    overhead: int,
    ahead: bool,
    predict: bool,
) -> Tensor:
    """Below which expectation of z a neuron stops, after each stage: (stages, outputs).

    Args:
        gradient, sd, left, lam, overhead: as of :func:`exprune.core.heuristics.stopping.looking_ahead`.
        spared: FLOPs elsewhere that an output of exactly 0 spares.
        ahead: whether going on may stop at a later stage.
        predict: whether what stops may output what the activation makes of its expectation, too.
    """
    blocks = zip(gradient.split(_BLOCK), sd.split(_BLOCK, 1), left.split(_BLOCK, 1), strict=True)
    return torch.cat([_block(activation, *block, spared, lam, overhead, ahead, predict) for block in blocks], dim=1)


def zero_thresholds(activation: Activation, gradient: Tensor, sd: Tensor, spared: int, lam: float) -> Tensor:
    """Below which expectation of z what stops had better output 0, which spares more: (stages, outputs)."""
    squares, errors = (_of(table.to(sd), sd) for table in _tables(activation))
    return _crossing(gradient[:, None] / 2 * (squares - errors) - lam * spared, sd)


def tolerated(activation: Activation, sd: Tensor, tolerance: float, tau: float) -> Tensor:
    """Below which expectation of z the probability that |f(z)| exceeds the tolerance is below ``tau``."""
    table = _probability(activation, tolerance).to(sd)
    return _crossing(_of(table, sd) - tau, sd)


def _block(
    activation: Activation,
    gradient: Tensor,
    sd: Tensor,
    left: Tensor,
    spared: int,
    lam: float,
    overhead: int,
    ahead: bool,
    predict: bool,
) -> Tensor:
    squares, errors = (gradient[:, None] / 2 * _of(table.to(sd), sd) for table in _tables(activation))
    stop = squares.minimum(errors + lam * spared) if predict else squares
    computed = lam * (left + spared)[..., None]  # of all the rest
    if not ahead:
        return _crossing(stop - computed, sd)
    means, places = _MEANS.to(sd), _PLACES.to(sd)
    nodes, weights = (values.to(sd) for values in gauss_hermite(_REVEALED))
    points = [_crossing(stop[-1:] - computed[-1:], sd[-1:])]
    later = stop[-1].minimum(computed[-1])
    for stage in range(len(sd) - 2, -1, -1):
        now, then = _wide(sd[stage])[:, None], _wide(sd[stage + 1])[:, None]
        revealed = (now**2 - then**2).clamp(min=0).sqrt()
        expected = ((now * means)[..., None] + revealed[..., None] * nodes) / then[..., None]
        cost = (_interpolated(later, expected.asinh(), places) * weights).sum(-1)
        go_on = lam * (left[stage] - left[stage + 1] + overhead)[:, None] + cost
        points.append(_crossing((stop[stage] - go_on)[None], sd[stage : stage + 1]))
        later = stop[stage].minimum(go_on)
    return torch.cat(points[::-1])


def _wide(sd: Tensor) -> Tensor:
    return sd.clamp(float(_DEVIATIONS[0]), float(_DEVIATIONS[-1]))


def _of(table: Tensor, sd: Tensor) -> Tensor:
    """The rows (..., means) of a table (deviations, means) for these standard deviations."""
    place = (torch.log2(_wide(sd)) * 8 + 48).clamp(0, len(table) - 1)
    row = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[row], table[row + 1], (place - row)[..., None])


def _interpolated(values: Tensor, at: Tensor, places: Tensor) -> Tensor:
    """Of (outputs, means) values on the grid, those at (outputs, ...) places; constant beyond its ends."""
    place = ((at - places[0]) / (places[1] - places[0])).clamp(0, len(places) - 1)
    first = place.long().clamp(max=len(places) - 2)
    of = values.gather(1, first.flatten(1)).view_as(at), values.gather(1, first.flatten(1) + 1).view_as(at)
    return torch.lerp(*of, place - first)


def _crossing(values: Tensor, sd: Tensor) -> Tensor:
    """Where (stages, outputs, means) values, negative at first, reach 0: z of (stages, outputs).

    -inf where they never are negative, infinite where they always are.
    """
    count = (values < 0).long().cumprod(-1).sum(-1, keepdim=True)
    index = count.clamp(1, values.shape[-1] - 1)
    before, after = values.gather(-1, index - 1), values.gather(-1, index)
    places = _PLACES.to(values)
    place = places[index - 1] + (places[1] - places[0]) * before / (before - after)
    point = place.sinh() * _wide(sd)[..., None]
    point = torch.where(count == 0, -math.inf, torch.where(count == values.shape[-1], math.inf, point))
    return point.squeeze(-1)


def _tables(activation: Activation) -> tuple[Tensor, Tensor]:
    """E f(z)^2 and E (f(z) - f(E z))^2, (deviations, means) float64."""
    return _kept_tables(_Function(activation))


class _Function:
    """An activation as a key: of equal name, and equal where it is tried."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        tried = activation(torch.linspace(-8, 8, 65, dtype=torch.float64))
        self.key = (activation.name, tuple(tried.tolist()))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.key == other.key


@lru_cache(maxsize=64)
def _kept_tables(function: _Function) -> tuple[Tensor, Tensor]:
    nodes, weights = gauss_hermite(_NODES)
    mean = _DEVIATIONS[:, None] * _MEANS
    f = function.activation(mean[..., None] + _DEVIATIONS[:, None, None] * nodes)
    at_mean = function.activation(mean)[..., None]
    return (f**2 * weights).sum(-1), ((f - at_mean) ** 2 * weights).sum(-1)


def _probability(activation: Activation, tolerance: float) -> Tensor:
    """P(|f(z)| > tolerance), (deviations, means) float64."""
    return _kept_probability(_Function(activation), tolerance)


@lru_cache(maxsize=64)
def _kept_probability(function: _Function, tolerance: float) -> Tensor:
    above = function.activation(_FINE).abs() > tolerance
    edges = above[1:].int() - above[:-1].int()
    mean, total = _DEVIATIONS[:, None] * _MEANS, torch.zeros(len(_DEVIATIONS), len(_MEANS), dtype=torch.float64)
    # From each edge at which it begins to exceed the tolerance to the one at which it ceases to.
    for edge in edges.nonzero().flatten():
        total -= int(edges[edge]) * torch.special.ndtr((_FINE[edge + 1] - mean) / _DEVIATIONS[:, None])
    return total + float(above[-1])
