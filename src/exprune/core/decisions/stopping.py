"""Optimal stopping of a neuron whose value is learned in stages (docs/method.md, sections 8 and 10).

The cost of stopping depends on the mean and the standard deviation of z given the partial sum. The problem is solved by
backward induction on a grid of gradients and deviations, along the mean course of a site's deviations over the stages.
Values between grid points are interpolated. Without an activation there is a closed-form solution.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exprune.core.calls.activations import Activation
from exprune.core.decisions.moments import (
    DEVIATIONS,
    MEANS,
    PLACES,
    STEP,
    exceeds,
    gauss_hermite,
    known_deviations,
    moments,
    octaves,
)

_SOLVED = DEVIATIONS[::2]  # a quarter of an octave apart
_REVEALED = 9  # nodes of the quadrature over what a stage may reveal
_GRADIENTS = 2  # grid points per octave of the gradient
_OF_A_RELU = 4  # the same for a ReLU, for which gradients and deviations form one axis
_OCTAVES = 64  # largest extent of the gradient grid; smaller gradients are clamped to its lower end
_AT_ONCE = 64  # neurons with individual courses that are solved together
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Problem:
    """The stopping problem of each neuron of a site, at a price.

    Attributes:
        activation: The activation that the site feeds; None if there is none.
        gradient: The mean squared gradient of the loss at each output (outputs,). An output error e costs
            ``gradient * e^2 / 2``.
        sd: The standard deviation of z after each stage, in a row of usual width (stages, outputs).
        left: FLOPs of the remaining terms after each stage (stages, outputs).
        spared: FLOPs in other layers that an output of exactly 0 saves.
        overhead: FLOPs of one more test.
        lam: The price of a FLOP in units of loss, above 0.
        ahead: Whether a neuron that continues may stop at a later stage; otherwise all remaining terms are computed.
        predict: Whether stopped neurons may output the activation of their expectation.
    """

    activation: Activation | None
    gradient: Tensor
    sd: Tensor
    left: Tensor
    spared: int
    overhead: int
    lam: float
    ahead: bool
    predict: bool


def stop_below(problem: Problem, widths: Tensor) -> Tensor:
    """The expectation of z below which a neuron stops.

    Args:
        problem: The stopping problem.
        widths: Widths of rows in units of the usual width (widths,).

    Returns:
        Bounds (widths, stages, outputs) in units of z. Infinity means always, and minus infinity never.
    """
    if _differ(problem):
        outputs = torch.arange(problem.sd.shape[1]).split(_AT_ONCE)
        return torch.cat([_each_below(_part(problem, some), widths) for some in outputs], -1)
    activation, unit, course = problem.activation, _unit(problem), _course(problem.sd)
    assert activation is not None
    wide = widths[:, None, None] * problem.sd
    start = wide / course  # the deviation after the first stage of a course that passes through this point
    log_gradient = torch.log2(problem.gradient / (problem.lam * unit)).expand_as(start)
    if activation.relu:  # doubling the width of z quadruples the damage
        deviations, at = torch.ones(1, dtype=start.dtype), torch.zeros_like(start)
        gradients, places = _lattice(log_gradient + 2 * torch.log2(start), _OF_A_RELU)
    else:
        deviations, at = _SOLVED, octaves(start) / 2
        gradients, places = _lattice(log_gradient, _GRADIENTS)
    solved = solve(problem, gradients, deviations, course, slice(1))
    between = [_between(of, places[:, k], at[:, k]) for k, of in enumerate(solved)]
    return torch.stack(between, 1).sinh() * known_deviations(activation, wide)


def _differ(problem: Problem) -> bool:
    """Whether neurons need individual courses: under a static mask, or if dead inputs make some of them known early."""
    share, course = problem.left / _unit(problem), torch.log2(problem.sd / problem.sd[0])
    relu = problem.activation is not None and problem.activation.relu
    return not torch.allclose(share, share[:, :1]) or (relu and bool(course.std(1, correction=0).amax() > 1))


def _each_below(problem: Problem, widths: Tensor) -> Tensor:
    """Like `stop_below`, for neurons with individual courses and costs."""
    activation, course = problem.activation, problem.sd / problem.sd[0]
    assert activation is not None
    log_gradient, every = torch.log2(problem.gradient / (problem.lam * _unit(problem))), slice(None)
    wide = widths[:, None, None] * problem.sd
    if activation.relu:
        gradients, places = _lattice(log_gradient + 2 * torch.log2(wide[:, 0]), _OF_A_RELU)
        solved = solve(problem, gradients, torch.ones_like(log_gradient), course, every)
        between = torch.stack([_along(of, places) for of in solved], 1)
    else:
        gradients, places = _lattice(log_gradient[None], _GRADIENTS)
        solved_at = (solve(problem, gradients, start, course, every) for start in wide[:, 0])
        between = torch.cat([torch.stack([_along(of, places) for of in solved], 1) for solved in solved_at])
    return between.sinh() * known_deviations(activation, wide)


def zero_below(problem: Problem, widths: Tensor) -> Tensor:
    """The expectation of z below which a stopped neuron should output 0, as this saves more; see `stop_below`."""
    wide = widths[:, None, None] * problem.sd
    assert problem.activation is not None
    gradients, places = _lattice(torch.log2(problem.gradient / problem.lam), _GRADIENTS)
    solved = solve_zero(problem.activation, gradients, _SOLVED, problem.spared)
    return _between(solved, places.expand_as(wide), octaves(wide) / 2).sinh() * known_deviations(
        problem.activation, wide
    )


def _part(problem: Problem, outputs: Tensor) -> Problem:
    """The problem of some of the neurons."""
    of = problem.gradient[outputs], problem.sd[:, outputs], problem.left[:, outputs]
    return replace(problem, gradient=of[0], sd=of[1], left=of[2])


def tolerated(activation: Activation, sd: Tensor, tolerance: float, tau: float) -> Tensor:
    """The expectation of z below which P(|f(z)| > tolerance) is below ``tau``."""
    solved = _crossing(exceeds(activation, tolerance) - tau)[None]
    return _between(solved, torch.zeros_like(sd), octaves(sd)).sinh() * known_deviations(activation, sd)


def stop_narrower(problem: Problem) -> Tensor:
    """The row width below which a neuron without an activation stops with its expectation (stages, outputs).

    Without an activation the damage of stopping grows with the square of the width. Widths are in units of the usual
    one.
    """
    damage = problem.gradient * problem.sd**2 / 2
    last, worth = len(damage) - 1, []
    for k, (now, left) in enumerate(zip(damage, problem.left, strict=True)):
        # What is spent until each later stage, and how much smaller the damage is there; at the end it is 0.
        spent = [left + (last - k) * problem.overhead * problem.ahead]
        gained = [now]
        for j in range(k + 1, last + 1) if problem.ahead else ():
            spent.append(left - problem.left[j] + (j - k) * problem.overhead)
            gained.append((now - damage[j]).clamp(min=0))
        worth.append((torch.stack(spent) / torch.stack(gained)).nan_to_num(nan=math.inf).amin(0))
    return (problem.lam * torch.stack(worth)).sqrt()


def solve(problem: Problem, gradients: Tensor, deviations: Tensor, course: Tensor, outputs: slice) -> Tensor:
    """Solve for the thresholds on a grid of gradients and deviations.

    Args:
        problem: The stopping problem.
        gradients: Gradients in units of the price (G,).
        deviations: Standard deviations after the first stage (D,).
        course: The deviations after each stage in units of the first (stages, 1 or D).
        outputs: The neurons whose FLOPs are used: one neuron for all deviations, or one per deviation.

    Returns:
        Thresholds (stages, gradients, deviations), as asinh of the expectation in units of the deviation after the
            stage (see `known_deviations`).
    """
    activation, unit = problem.activation, _unit(problem)[outputs, None]
    assert activation is not None
    left, spared, overhead = (
        problem.left[:, outputs, None] / unit,
        problem.spared / unit,
        problem.overhead / unit,
    )
    stop, known = [], [known_deviations(activation, deviations * share) for share in course]
    for of_stage in known:
        squares, errors = moments(activation, of_stage)
        half = gradients[:, None, None] / 2
        stop.append((half * squares).minimum(half * errors + spared) if problem.predict else half * squares)
    computed = left + spared
    points = [_log_crossing(stop[-1], computed[-1])]
    later = stop[-1].minimum(computed[-1])
    for k in range(len(stop) - 2, -1, -1):
        go_on = computed[k].expand_as(stop[k])
        if problem.ahead:
            expected = torch.einsum("gdm,dnm->gdn", later, _revealed(known[k], known[k + 1]))
            go_on = computed[k] - computed[k + 1] + overhead + expected
        points.append(_log_crossing(stop[k], go_on))
        later = stop[k].minimum(go_on)
    solved = torch.stack(points[::-1])
    # The damage of an output of 0 keeps growing beyond the grid, where a nearly known neuron may lie.
    return solved.clamp(max=float(PLACES[-1])) if activation.relu and not problem.predict else solved


def solve_zero(activation: Activation, gradients: Tensor, deviations: Tensor, spared: float) -> Tensor:
    """The mean below which an output of 0 costs no more than a prediction, on the same grid (gradients, deviations)."""
    squares, errors = moments(activation, deviations)
    return _crossing(gradients[:, None, None] / 2 * (squares - errors) - spared)


def _revealed(now: Tensor, then: Tensor) -> Tensor:
    """The matrix (deviations, means now, means then) that takes the expectation of a function of the next stage's mean.

    The next mean is normally distributed around the present one, with the variance that the stage explains. ``now`` and
    ``then`` are the deviations at both stages (D,), and means are in units of them.
    """
    nodes, weights = gauss_hermite(_REVEALED)
    revealed = (now**2 - then**2).clamp(min=0).sqrt()
    means = (now[:, None] * MEANS)[..., None] + revealed[:, None, None] * nodes
    place = (((means / then[:, None, None]).asinh() - PLACES[0]) / STEP).clamp(0, len(PLACES) - 1)
    lower = place.long().clamp(max=len(PLACES) - 2)
    matrix = torch.zeros(len(now), len(PLACES), len(PLACES), dtype=torch.float64)
    matrix.scatter_add_(2, lower, weights * (1 - (place - lower)))
    return matrix.scatter_add_(2, lower + 1, weights * (place - lower))


def _unit(problem: Problem) -> Tensor:
    """FLOPs per neuron (outputs,) used as the unit of cost."""
    return problem.left[0].clamp(min=1)


def _course(sd: Tensor) -> Tensor:
    """The deviations after each stage relative to the first, as a geometric mean over the outputs (stages, 1)."""
    return torch.log(sd / sd[0]).mean(1, keepdim=True).exp()


def _lattice(values: Tensor, per_octave: int) -> tuple[Tensor, Tensor]:
    """A grid of powers of 2 that covers the exponents ``values``, and their fractional positions in it."""
    steps = values * per_octave
    steps = steps.clamp(min=float(steps.max()) - _OCTAVES * per_octave)
    first, last = math.floor(float(steps.min())), math.ceil(float(steps.max())) + 1
    return 2.0 ** (torch.arange(first, last + 1, dtype=torch.float64) / per_octave), steps - first


def _between(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Interpolate bilinearly in ``values`` (rows, columns); next to an infinite value, use the lowest corner."""
    rows, columns = values.shape
    i, j = (place.long().clamp(0, max(size - 2, 0)) for place, size in ((row, rows), (column, columns)))
    below, beside = (i + 1).clamp(max=rows - 1), (j + 1).clamp(max=columns - 1)
    corners = [values[a, b] for a in (i, below) for b in (j, beside)]
    top, bottom = (torch.lerp(corners[k], corners[k + 1], column - j) for k in (0, 2))
    between = torch.lerp(top, bottom, row - i)
    return torch.where(between.isfinite(), between, torch.stack(corners).amin(0))


def _along(values: Tensor, row: Tensor) -> Tensor:
    """Linear interpolation along the rows of ``values`` (rows, outputs) at positions (n, outputs); see `_between`."""
    i = row.long().clamp(0, max(len(values) - 2, 0))
    low, high = values.gather(0, i), values.gather(0, (i + 1).clamp(max=len(values) - 1))
    between = torch.lerp(low, high, row - i)
    return torch.where(between.isfinite(), between, low.minimum(high))


def _log_crossing(stop: Tensor, go_on: Tensor) -> Tensor:
    """The mean up to which stopping costs less. Logarithms are interpolated, as they are nearly linear."""
    return _crossing(stop.clamp(min=_TINY).log() - go_on.clamp(min=_TINY).log())


def _crossing(values: Tensor) -> Tensor:
    """Where ``values`` (..., means), negative at first, reach 0, as asinh of a mean in standard deviations (...).

    It is -inf if the values are never negative, and inf if they always are.
    """
    count = (values < 0).long().cumprod(-1).sum(-1, keepdim=True)
    index = count.clamp(1, values.shape[-1] - 1) - 1
    before, after = values.gather(-1, index), values.gather(-1, index + 1)
    point = PLACES[index] + STEP * before / (before - after)
    point = torch.where(count == 0, -math.inf, torch.where(count == values.shape[-1], math.inf, point))
    return point.squeeze(-1)
