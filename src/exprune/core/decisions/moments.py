"""Moments of an activation's output, and of the error of stopping, for a normally distributed pre-activation z.

For an activation f and z with mean m and standard deviation d, moments are tabulated on a grid of deviations and of
means in units of d. The grid is fine around 0 and reaches far, because a neuron that is nearly known may be stopped
although its mean is many standard deviations from 0 (docs/method.md, section 10).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from exprune.core.calls.activations import Activation

PLACES = torch.linspace(-7, 7, 241, dtype=torch.float64)
STEP = float(PLACES[1] - PLACES[0])
MEANS = PLACES.sinh()  # in units of the standard deviation
_PER_OCTAVE = 8
DEVIATIONS = 2.0 ** (torch.arange(-6 * _PER_OCTAVE, 8 * _PER_OCTAVE + 1, dtype=torch.float64) / _PER_OCTAVE)
_NODES = 48  # of the quadrature over f
_FINE = torch.linspace(-64, 64, 2**15 + 1, dtype=torch.float64)  # grid on which |f| is compared with a tolerance


def half_moment(u: Tensor) -> Tensor:
    """E[relu(u + Normal(0, 1))^2] = (u^2 + 1) Phi(u) + u phi(u), increasing in u."""
    # Phi is computed with erfcx, which keeps its relative precision far below 0, where the two summands nearly cancel.
    tail: Tensor = torch.special.erfcx(-u / math.sqrt(2)) / 2
    far = torch.exp(-u * u / 2) * ((u * u + 1) * tail + u / math.sqrt(2 * math.pi))
    return torch.where(u > _SURE, u * u + 1, far)  # erfcx overflows


def predicted_moment(u: Tensor) -> Tensor:
    """E[(relu(u + Normal(0, 1)) - relu(u))^2], increasing in u towards 1: the error of outputting the expectation."""
    above = u.clamp(min=0)
    tail: Tensor = torch.special.erfcx(above / math.sqrt(2)) / 2
    density = torch.exp(-above * above / 2)
    of_positive = 1 - density * (tail * (1 - above * above) + above / math.sqrt(2 * math.pi))
    return torch.where(u > 0, of_positive, half_moment(u.clamp(max=0)))


_SURE = 8.0  # in standard deviations


def moments(activation: Activation, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """E f(z)^2 and E (f(z) - f(m))^2 as (deviations, means) float64, for deviations from `known_deviations`."""
    if activation.relu:
        squares = deviations[:, None] ** 2
        return squares * half_moment(MEANS), squares * predicted_moment(MEANS)
    squares, errors = (_rows(table, deviations) for table in _tables(activation))
    return squares, errors


def known_deviations(activation: Activation, deviations: Tensor) -> Tensor:
    """The deviations, clamped to the range of the table. For a ReLU there is no limit."""
    return deviations if activation.relu else deviations.clamp(float(DEVIATIONS[0]), float(DEVIATIONS[-1]))


def exceeds(activation: Activation, tolerance: float) -> Tensor:
    """P(|f(z)| > tolerance) as (deviations, means) float64, at the deviations `DEVIATIONS`."""
    above = activation(_FINE).abs() > tolerance
    edges = above[1:].int() - above[:-1].int()
    mean, total = DEVIATIONS[:, None] * MEANS, torch.zeros(len(DEVIATIONS), len(MEANS), dtype=torch.float64)
    # Sum over intervals: from each edge where |f| begins to exceed the tolerance to the edge where it ceases to.
    for edge in edges.nonzero().flatten():
        total -= int(edges[edge]) * torch.special.ndtr((_FINE[edge + 1] - mean) / DEVIATIONS[:, None])
    return total + float(above[-1])


def octaves(deviations: Tensor) -> Tensor:
    """The positions of standard deviations in `DEVIATIONS`, as fractional indices clamped to its ends."""
    places = (torch.log2(deviations) - torch.log2(DEVIATIONS[0])) * _PER_OCTAVE
    return places.clamp(0, len(DEVIATIONS) - 1)


def _rows(table: Tensor, deviations: Tensor) -> Tensor:
    place = octaves(deviations)
    row = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[row], table[row + 1], (place - row)[:, None])


@lru_cache(maxsize=64)
def _tables(activation: Activation) -> tuple[Tensor, Tensor]:
    nodes, weights = gauss_hermite(_NODES)
    mean = DEVIATIONS[:, None] * MEANS
    f = activation(mean[..., None] + DEVIATIONS[:, None, None] * nodes)
    at_mean = activation(mean)[..., None]
    return (f**2 * weights).sum(-1), ((f - at_mean) ** 2 * weights).sum(-1)


def gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Hermite quadrature for a standard normal variable (Golub and Welsch 1969)."""
    beside = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes, vectors[0] ** 2
