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
from exprune.core.heuristics.stopping import crossing, gauss_hermite, interpolated

_DEVIATIONS = 2.0 ** (torch.arange(-48, 65, dtype=torch.float64) / 8)  # from 1/64 to 256; narrower ones are as wide
_PLACES = torch.linspace(-7, 7, 161, dtype=torch.float64)
_STEP = float(_PLACES[1] - _PLACES[0])
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
    found = []
    for of, wide, rest in zip(gradient.split(_BLOCK), sd.split(_BLOCK, 1), left.split(_BLOCK, 1), strict=True):
        squares, errors = (of[:, None] / 2 * _of(table.to(sd), wide) for table in _tables(activation))
        stop = squares.minimum(errors + lam * spared) if predict else squares
        computed = lam * (rest + spared)[..., None]  # of all the rest
        found.append(
            _looking_ahead(stop, computed, wide, lam * overhead) if ahead else _crossing(stop - computed, wide)
        )
    return torch.cat(found, dim=1)


def zero_thresholds(activation: Activation, gradient: Tensor, sd: Tensor, spared: int, lam: float) -> Tensor:
    """Below which expectation of z what stops had better output 0, which spares more: (stages, outputs)."""
    squares, errors = (_of(table.to(sd), sd) for table in _tables(activation))
    return _crossing(gradient[:, None] / 2 * (squares - errors) - lam * spared, sd)


def tolerated(activation: Activation, sd: Tensor, tolerance: float, tau: float) -> Tensor:
    """Below which expectation of z the probability that |f(z)| exceeds the tolerance is below ``tau``."""
    table = _probability(activation, tolerance).to(sd)
    return _crossing(_of(table, sd) - tau, sd)


def _looking_ahead(stop: Tensor, computed: Tensor, sd: Tensor, test: float) -> Tensor:
    """Where going on may stop at a later stage: by backward induction.

    Args:
        stop: (stages, outputs, means), what stopping costs.
        computed: (stages, outputs, 1), what computing all the rest does.
        test: what a test does.
    """
    means = _MEANS.to(sd)
    nodes, weights = (values.to(sd) for values in gauss_hermite(_REVEALED))
    points = [_crossing(stop[-1:] - computed[-1:], sd[-1:])]
    later = stop[-1].minimum(computed[-1])
    for stage in range(len(sd) - 2, -1, -1):
        now, then = _wide(sd[stage])[:, None], _wide(sd[stage + 1])[:, None]
        revealed = (now**2 - then**2).clamp(min=0).sqrt()
        expected = ((now * means)[..., None] + revealed[..., None] * nodes) / then[..., None]
        cost = (interpolated(later, (expected.asinh() - _PLACES[0]) / _STEP) * weights).sum(-1)
        go_on = computed[stage] - computed[stage + 1] + test + cost
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


def _crossing(values: Tensor, sd: Tensor) -> Tensor:
    """Where (stages, outputs, means) values, negative at first, reach 0: z of (stages, outputs).

    -inf where they never are negative, infinite where they always are.
    """
    index, part, count = crossing(values)
    point = (_PLACES.to(values)[index] + _STEP * part).sinh() * _wide(sd)
    return torch.where(count == 0, -math.inf, torch.where(count == values.shape[-1], math.inf, point))


@lru_cache(maxsize=64)
def _tables(activation: Activation) -> tuple[Tensor, Tensor]:
    """E f(z)^2 and E (f(z) - f(E z))^2, (deviations, means) float64."""
    nodes, weights = gauss_hermite(_NODES)
    mean = _DEVIATIONS[:, None] * _MEANS
    f = activation(mean[..., None] + _DEVIATIONS[:, None, None] * nodes)
    at_mean = activation(mean)[..., None]
    return (f**2 * weights).sum(-1), ((f - at_mean) ** 2 * weights).sum(-1)


@lru_cache(maxsize=64)
def _probability(activation: Activation, tolerance: float) -> Tensor:
    """P(|f(z)| > tolerance), (deviations, means) float64."""
    above = activation(_FINE).abs() > tolerance
    edges = above[1:].int() - above[:-1].int()
    mean, total = _DEVIATIONS[:, None] * _MEANS, torch.zeros(len(_DEVIATIONS), len(_MEANS), dtype=torch.float64)
    # From each edge at which it begins to exceed the tolerance to the one at which it ceases to.
    for edge in edges.nonzero().flatten():
        total -= int(edges[edge]) * torch.special.ndtr((_FINE[edge + 1] - mean) / _DEVIATIONS[:, None])
    return total + float(above[-1])
