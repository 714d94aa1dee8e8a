"""The stopping problem solved for each neuron and width separately, without a grid."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core import Activation
from exprune.core.decisions.moments import half_moment, known_deviations
from exprune.core.decisions.stopping import Problem, solve, solve_zero
from exprune.core.heuristics import optimal


def exactly(problem: Problem, widths: Tensor) -> Tensor:
    """Like `stop_below`."""
    assert problem.activation is not None
    found = []
    for j, gradient in enumerate(problem.gradient):
        sd, unit = problem.sd[:, j], float(problem.left[0, j].clamp(min=1))
        alone = replace(problem, gradient=gradient[None], sd=sd[:, None], left=problem.left[:, j : j + 1])
        of_price, course = gradient[None] / (problem.lam * unit), (sd / sd[0])[:, None]
        solved = solve(alone, of_price, sd[0] * widths, course, slice(1))
        found.append(solved[:, 0].T.sinh() * known_deviations(problem.activation, widths[:, None] * sd))
    return torch.stack(found, -1)


def zero_exactly(problem: Problem, widths: Tensor) -> Tensor:
    """Like `zero_below`."""
    assert problem.activation is not None
    found = []
    for j, gradient in enumerate(problem.gradient):
        wide = (widths[:, None] * problem.sd[:, j]).flatten()
        solved = solve_zero(problem.activation, gradient[None] / problem.lam, wide, problem.spared)[0]
        found.append((solved.sinh() * known_deviations(problem.activation, wide)).view(len(widths), -1))
    return torch.stack(found, -1)


def problem(
    activation: Activation,
    gradient: Tensor,
    sd: Tensor,
    left: Tensor,
    spared: float,
    lam: float,
    overhead: int = 1,
    ahead: bool = False,
    predict: bool = False,
) -> Problem:
    return Problem(activation, gradient, sd, left, spared, overhead, lam, ahead, predict)  # type: ignore[arg-type]


def thresholds(*of: object) -> Tensor:
    """Bounds (stages, outputs) in a row of usual width."""
    return exactly(problem(*of), torch.ones(1, dtype=torch.float64))[0]  # type: ignore[arg-type]


def zero_thresholds(activation: Activation, gradient: Tensor, sd: Tensor, spared: float, lam: float) -> Tensor:
    """Bounds below which a stopped neuron outputs 0."""
    of = problem(activation, gradient, sd, torch.ones_like(sd), spared, lam)
    return zero_exactly(of, torch.ones(1, dtype=torch.float64))[0]


RELU = Activation("relu", F.relu, relu=True, rectifies=True)

Moment = Callable[[Tensor], Tensor]


def unit_moment(u: Tensor) -> Tensor:
    """The error of a neuron without an activation that stops with its expectation, in units of its variance."""
    return torch.ones_like(u)


def at_once(gradient: Tensor, sd: Tensor, left: Tensor, lam: float, moment: Moment = half_moment) -> Tensor:
    """The expectation, in standard deviations, below which stopping costs less than computing all the rest, by
    bisection.

    ``moment`` is the expected squared error of stopping, in units of its variance, an increasing function.
    """
    values = 2 * lam * left / (gradient * sd**2)
    low, high = torch.full_like(values, -10.0), torch.full_like(values, 10.0)
    never, always = values < moment(low), values >= moment(high)
    for _ in range(60):
        middle = (low + high) / 2
        above = moment(middle) > values
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(never, -math.inf, torch.where(always, 10.0 if moment is half_moment else math.inf, low))


@contextmanager
def no_grid() -> Iterator[None]:
    """Inside this context, Optimal uses exact solutions instead of the grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimal, "stop_below", exactly)
        patch.setattr(optimal, "zero_below", zero_exactly)
        yield
