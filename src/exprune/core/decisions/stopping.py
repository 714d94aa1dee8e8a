"""Optimal stopping of a neuron whose value is learned stage by stage (docs/method.md, sections 8 and 10).

What stopping costs depends on the mean and the standard deviation of z, what is known of it. The problem is solved by
backward induction on a grid of gradients and deviations, along the mean course of a site's deviations over the stages,
and read off between the points of the grid. Without an activation it has a closed solution.
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
_GRADIENTS = 2  # points to an octave of the gradient
_OF_A_RELU = 4  # likewise; its gradients and deviations are one axis
_OCTAVES = 64  # of the lattice at most: what matters less than all others by more is taken to matter so much
_AT_ONCE = 64  # neurons with courses of their own
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Problem:
    """Of each neuron of a site, at a price.

    Attributes:
        activation: before which it is tested; None: none.
        gradient: (outputs,) mean squared gradients of the loss at the output. Stopping with an error e costs
            ``gradient * e^2 / 2``.
        sd: (stages, outputs), of z after each stage, in the usual row.
        left: (stages, outputs) FLOPs of the rest after each stage.
        spared: FLOPs elsewhere that an output of exactly 0 spares.
        overhead: FLOPs of one more test.
        lam: the price of a FLOP in loss, above 0.
        ahead: whether going on may stop at a later stage; else all the rest is computed.
        predict: whether what stops may output what the activation makes of its expectation.
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
    """Below which expectation of z a neuron stops, in rows that are so many times as wide as usual.

    Returns:
        (widths, stages, outputs) in units of z; infinite: always, -inf: never.
    """
    if _differ(problem):
        outputs = torch.arange(problem.sd.shape[1]).split(_AT_ONCE)
        return torch.cat([_each_below(_part(problem, some), widths) for some in outputs], -1)
    activation, unit, course = problem.activation, _unit(problem), _course(problem.sd)
    assert activation is not None
    wide = widths[:, None, None] * problem.sd
    start = wide / course  # the deviation after the first stage of such a course
    log_gradient = torch.log2(problem.gradient / (problem.lam * unit)).expand_as(start)
    if activation.relu:  # z twice as wide costs four times as much
        deviations, at = torch.ones(1, dtype=start.dtype), torch.zeros_like(start)
        gradients, places = _lattice(log_gradient + 2 * torch.log2(start), _OF_A_RELU)
    else:
        deviations, at = _SOLVED, octaves(start) / 2
        gradients, places = _lattice(log_gradient, _GRADIENTS)
    solved = solve(problem, gradients, deviations, course, slice(1))
    between = [_between(of, places[:, k], at[:, k]) for k, of in enumerate(solved)]
    return torch.stack(between, 1).sinh() * known_deviations(activation, wide)


def _differ(problem: Problem) -> bool:
    """Whether each neuron has a course of its own: under a static mask, or where dead inputs leave some known early."""
    share, course = problem.left / _unit(problem), torch.log2(problem.sd / problem.sd[0])
    relu = problem.activation is not None and problem.activation.relu
    return not torch.allclose(share, share[:, :1]) or (relu and bool(course.std(1, correction=0).amax() > 1))


def _each_below(problem: Problem, widths: Tensor) -> Tensor:
    """As :func:`stop_below`, of neurons each of which has its own course and costs."""
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
    """Below which expectation of z what stops had better output 0, which spares more: as :func:`stop_below`."""
    wide = widths[:, None, None] * problem.sd
    assert problem.activation is not None
    gradients, places = _lattice(torch.log2(problem.gradient / problem.lam), _GRADIENTS)
    solved = solve_zero(problem.activation, gradients, _SOLVED, problem.spared)
    return _between(solved, places.expand_as(wide), octaves(wide) / 2).sinh() * known_deviations(
        problem.activation, wide
    )


def _part(problem: Problem, outputs: Tensor) -> Problem:
    """Of some neurons."""
    of = problem.gradient[outputs], problem.sd[:, outputs], problem.left[:, outputs]
    return replace(problem, gradient=of[0], sd=of[1], left=of[2])


def tolerated(activation: Activation, sd: Tensor, tolerance: float, tau: float) -> Tensor:
    """Below which expectation of z the probability that |f(z)| exceeds the tolerance is below ``tau``."""
    solved = _crossing(exceeds(activation, tolerance) - tau)[None]
    return _between(solved, torch.zeros_like(sd), octaves(sd)).sinh() * known_deviations(activation, sd)


def stop_narrower(problem: Problem) -> Tensor:
    """Without an activation: in rows that are less than so many times as wide as usual a neuron stops with its
    expectation, (stages, outputs). Then what stopping costs grows with the square of the width.
    """
    damage = problem.gradient * problem.sd**2 / 2
    last, worth = len(damage) - 1, []
    for k, (now, left) in enumerate(zip(damage, problem.left, strict=True)):
        # What is spent until a later stage, and what stopping there costs less than here; at the end all is known.
        spent = [left + (last - k) * problem.overhead * problem.ahead]
        gained = [now]
        for j in range(k + 1, last + 1) if problem.ahead else ():
            spent.append(left - problem.left[j] + (j - k) * problem.overhead)
            gained.append((now - damage[j]).clamp(min=0))
        worth.append((torch.stack(spent) / torch.stack(gained)).nan_to_num(nan=math.inf).amin(0))
    return (problem.lam * torch.stack(worth)).sqrt()


def solve(problem: Problem, gradients: Tensor, deviations: Tensor, course: Tensor, outputs: slice) -> Tensor:
    """The thresholds of neurons of all these gradients and deviations: (stages, gradients, deviations), as the inverse
    hyperbolic sine of expectations in units of the deviation after the stage, as :func:`known_deviations` has it.

    Args:
        problem: says what is spent, of ``outputs``: one neuron for all, or one for each deviation.
        gradients: (G,) in units of the price. deviations: (D,) after the first stage.
        course: (stages, 1 or D), the deviations after each stage, in units of the first.
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
    # The damage of a 0 grows on beyond the grid, where a neuron that is nearly known may lie.
    return solved.clamp(max=float(PLACES[-1])) if activation.relu and not problem.predict else solved


def solve_zero(activation: Activation, gradients: Tensor, deviations: Tensor, spared: float) -> Tensor:
    """Likewise below which mean 0 costs no more than a prediction: (gradients, deviations)."""
    squares, errors = moments(activation, deviations)
    return _crossing(gradients[:, None, None] / 2 * (squares - errors) - spared)


def _revealed(now: Tensor, then: Tensor) -> Tensor:
    """(deviations, means now, means then): how a function of the mean after the next stage is expected from those now.

    What is expected then is normally distributed around what is expected now, with the variance that the stage
    explains; the deviations are those of now and then, (D,), and means are in units of them.
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
    """(outputs,) FLOPs in which each neuron's are reckoned."""
    return problem.left[0].clamp(min=1)


def _course(sd: Tensor) -> Tensor:
    """(stages, 1): how the outputs' deviations go on from that after the first stage, in the geometric mean."""
    return torch.log(sd / sd[0]).mean(1, keepdim=True).exp()


def _lattice(values: Tensor, per_octave: int) -> tuple[Tensor, Tensor]:
    """Powers of 2 about these logarithms, so many to an octave, and where the values stand among them."""
    steps = values * per_octave
    steps = steps.clamp(min=float(steps.max()) - _OCTAVES * per_octave)
    first, last = math.floor(float(steps.min())), math.ceil(float(steps.max())) + 1
    return 2.0 ** (torch.arange(first, last + 1, dtype=torch.float64) / per_octave), steps - first


def _between(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Of (rows, columns) values those between the points; beside an infinite one the lowest, which is most cautious."""
    rows, columns = values.shape
    i, j = (place.long().clamp(0, max(size - 2, 0)) for place, size in ((row, rows), (column, columns)))
    below, beside = (i + 1).clamp(max=rows - 1), (j + 1).clamp(max=columns - 1)
    corners = [values[a, b] for a in (i, below) for b in (j, beside)]
    top, bottom = (torch.lerp(corners[k], corners[k + 1], column - j) for k in (0, 2))
    between = torch.lerp(top, bottom, row - i)
    return torch.where(between.isfinite(), between, torch.stack(corners).amin(0))


def _along(values: Tensor, row: Tensor) -> Tensor:
    """Of (rows, outputs) values those between the points of each output, at rows (n, outputs); as :func:`_between`."""
    i = row.long().clamp(0, max(len(values) - 2, 0))
    low, high = values.gather(0, i), values.gather(0, (i + 1).clamp(max=len(values) - 1))
    between = torch.lerp(low, high, row - i)
    return torch.where(between.isfinite(), between, low.minimum(high))


def _log_crossing(stop: Tensor, go_on: Tensor) -> Tensor:
    """Up to which mean stopping costs less, (...) of (..., means): their logarithms are nearly straight in between."""
    return _crossing(stop.clamp(min=_TINY).log() - go_on.clamp(min=_TINY).log())


def _crossing(values: Tensor) -> Tensor:
    """Where (..., means) values, negative at first, reach 0: asinh of a mean in standard deviations, of (...).

    -inf where they never are negative, infinite where they always are.
    """
    count = (values < 0).long().cumprod(-1).sum(-1, keepdim=True)
    index = count.clamp(1, values.shape[-1] - 1) - 1
    before, after = values.gather(-1, index), values.gather(-1, index + 1)
    point = PLACES[index] + STEP * before / (before - after)
    point = torch.where(count == 0, -math.inf, torch.where(count == values.shape[-1], math.inf, point))
    return point.squeeze(-1)
