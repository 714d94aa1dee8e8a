"""Optimal stopping of a neuron whose value is learned stage by stage (docs/method.md, section 8)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SPAN, _STEP = 10.0, 0.1  # of the grid of expectations, in standard deviations
_SURE = 8.0  # standard deviations
_NODES = 9  # of the quadrature over what a stage may reveal
_BLOCK = 64  # neurons at a time, which stay in the cache


def half_moment(u: Tensor) -> Tensor:
    """E[relu(u + Normal(0, 1))^2] = (u^2 + 1) Phi(u) + u phi(u), increasing in u."""
    # Phi by erfcx, which keeps its relative precision far below 0, where the two summands all but cancel.
    tail: Tensor = torch.special.erfcx(-u / math.sqrt(2)) / 2
    return torch.exp(-u * u / 2) * ((u * u + 1) * tail + u / math.sqrt(2 * math.pi))


def predicted_moment(u: Tensor) -> Tensor:
    """E[(relu(u + Normal(0, 1)) - relu(u))^2], increasing in u, to 1: of what is stopped with its expectation."""
    above = u.clamp(min=0)
    tail: Tensor = torch.special.erfcx(above / math.sqrt(2)) / 2
    density = torch.exp(-above * above / 2)
    of_positive = 1 - density * (tail * (1 - above * above) + above / math.sqrt(2 * math.pi))
    return torch.where(u > 0, of_positive, half_moment(u.clamp(max=0)))


def unit_moment(u: Tensor) -> Tensor:
    """E[(u + Normal(0, 1) - u)^2] = 1: of a neuron without a ReLU that is stopped with its expectation."""
    return torch.ones_like(u)


Moment = Callable[[Tensor], Tensor]


def inverse(moment: Moment, values: Tensor) -> Tensor:
    """The u in [-10, 10] at which the moment, which increases, is the value; -inf where it is more everywhere.

    Where it is less everywhere: infinite, of a moment that does not grow beyond; else 10. float64.
    """
    low, high = torch.full_like(values, -_SPAN), torch.full_like(values, _SPAN)
    never, always = values < moment(low), values >= moment(high)
    for _ in range(60):
        middle = (low + high) / 2
        above = moment(middle) > values
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(never, -math.inf, torch.where(always, without_width(moment), low))


def without_width(moment: Moment) -> float:
    """Below which expectation a neuron stops that is known exactly, in standard deviations of next to nothing."""
    return _SPAN if moment is half_moment else math.inf


def at_once(gradient: Tensor, sd: Tensor, left: Tensor, lam: float, moment: Moment = half_moment) -> Tensor:
    """Below which expectation, in standard deviations, stopping costs less than computing all the rest.

    Args:
        gradient: (outputs,) mean squared gradients; stopping costs ``gradient * sd^2 * moment(u) / 2``, with the
            expectation u in standard deviations.
        sd: (stages, outputs) of z after each stage.
        left: (stages, outputs) FLOPs of the rest after each stage.
        lam: loss per FLOP.
    """
    return inverse(moment, 2 * lam * left / (gradient * sd**2))


def looking_ahead(
    gradient: Tensor, sd: Tensor, left: Tensor, lam: float, overhead: int, moment: Moment = half_moment
) -> Tensor:
    """Likewise, where going on may stop at a later stage, which makes it cheaper: by backward induction.

    What is expected of z after the next stage is normally distributed around what is expected now, with the variance
    that the stage explains.
    """
    if moment is unit_moment:
        return _without_expectation(gradient, sd, left, lam, overhead)
    blocks = zip(gradient.split(_BLOCK), sd.split(_BLOCK, 1), left.split(_BLOCK, 1), strict=True)
    return torch.cat([_looking_ahead(*block, lam, overhead, moment) for block in blocks], dim=1)


def _without_expectation(gradient: Tensor, sd: Tensor, left: Tensor, lam: float, overhead: int) -> Tensor:
    """Likewise, where what stopping costs does not depend on what is expected: always or never, after each stage."""
    damage = gradient * sd**2 / 2
    points, later = [], lam * left[-1]
    for stage in range(len(sd) - 1, -1, -1):
        go_on = later if stage == len(sd) - 1 else lam * (left[stage] - left[stage + 1] + overhead) + later
        points.append(torch.where(damage[stage] < go_on, math.inf, -math.inf).to(sd))
        later = torch.minimum(damage[stage], go_on)
    return torch.stack(points[::-1])


def between(low: Tensor, high: Tensor, part: Tensor, moment: Moment) -> Tensor:
    """Bounds at a price that is so far on its way, in logarithms, from that of ``low`` to that of ``high``.

    They grow with the root of the price where they are large, and hardly where they are far below 0.
    """
    start, end = (torch.asinh(bound.clamp(-_SPAN, _SPAN)) for bound in (low, high))
    u = torch.sinh(torch.lerp(start, end, part))
    u = torch.where(u < -_SURE, -math.inf, u)
    return u if moment is half_moment else torch.where(u > _SURE, math.inf, u)


def _looking_ahead(gradient: Tensor, sd: Tensor, left: Tensor, lam: float, overhead: int, moment: Moment) -> Tensor:
    grid = torch.arange(-_SPAN, _SPAN + _STEP / 2, _STEP, dtype=sd.dtype, device=sd.device)
    nodes, weights = (values.to(sd.device) for values in gauss_hermite(_NODES))
    damage = (gradient * sd**2 / 2)[..., None] * moment(grid)  # (stages, outputs, grid)
    points = [at_once(gradient, sd[-1:], left[-1:], lam, moment)[0]]
    later = torch.minimum(damage[-1], lam * left[-1][:, None])
    for stage in range(len(sd) - 2, -1, -1):
        revealed = (sd[stage] ** 2 - sd[stage + 1] ** 2).clamp(min=0).sqrt()
        expected = (sd[stage][:, None] * grid)[..., None] + revealed[:, None, None] * nodes
        places = (expected / sd[stage + 1][:, None, None] + _SPAN) / _STEP
        cost = (interpolated(later, places) * weights).sum(-1)
        go_on = lam * (left[stage] - left[stage + 1] + overhead)[:, None] + cost
        points.append(_crossing(damage[stage] - go_on, grid, without_width(moment)))
        later = torch.minimum(damage[stage], go_on)
    return torch.stack(points[::-1])


def gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the quadrature for a standard normal variable, by Golub and Welsch 1969."""
    beside = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes, vectors[0] ** 2


def interpolated(values: Tensor, place: Tensor) -> Tensor:
    """Of (outputs, grid) values those at places (outputs, ...), in steps of the grid; constant beyond its ends."""
    place = place.clamp(0, values.shape[1] - 1)
    left = place.long().clamp(max=values.shape[1] - 2)
    of = values.gather(1, left.flatten(1)).view_as(place), values.gather(1, left.flatten(1) + 1).view_as(place)
    return torch.lerp(*of, place - left)


def crossing(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where (..., grid) values, negative at first, reach 0: behind which point of the grid, and how far to the next.

    And how many are negative before: 0 where they never are, all where they always are.
    """
    count = (values < 0).long().cumprod(-1).sum(-1, keepdim=True)
    index = count.clamp(1, values.shape[-1] - 1) - 1
    before, after = values.gather(-1, index), values.gather(-1, index + 1)
    return index.squeeze(-1), (before / (before - after)).squeeze(-1), count.squeeze(-1)


def _crossing(values: Tensor, grid: Tensor, beyond: float) -> Tensor:
    """Where each row, negative at first, reaches 0; -inf where it never is negative, ``beyond`` where it always is."""
    index, part, count = crossing(values)
    point = grid[index] + _STEP * part
    return torch.where(count == 0, -math.inf, torch.where(count == len(grid), beyond, point))
