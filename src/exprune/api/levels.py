"""Search for a heuristic's level: at 0 it stops almost nothing, at 1 as much as its setting allows."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

_FINEST = 1 / 512  # width of level intervals within which the saving is assumed to rise linearly


class Tried(NamedTuple):
    """One measured level: the change of the outputs or the fall of a metric, and the share of FLOPs saved."""

    level: float
    change: float
    saved: float


_NOTHING = Tried(0.0, 0.0, 0.0)


def most_within(
    tried: Callable[[float], Tried], limit: float, coarse: float, refine: int = 0, noise: float = 0.0
) -> Tried:
    """The highest level whose change is within a limit; level 0 if there is none.

    The change is a noisy function of the level. So the search bisects for ``limit + noise``, which is above the noise,
    and then goes down from there in small steps to the first level within the limit. Bisecting for the limit itself
    would end at an arbitrary chance crossing; only the last step is bisected.

    Args:
        tried: Measures a level.
        limit: The largest change that is allowed.
        coarse: The step of the level.
        refine: How often the last step is halved.
        noise: How far the change may vary by chance.
    """
    low, high = _NOTHING, tried(1.0)
    if high.change <= limit:
        return high
    if high.change > limit + noise:
        low, high = _bisected(tried, low, high, lambda at: at.change > limit + noise, coarse)
    else:
        low = high
    while low.change > limit and low.level > 0:
        low, high = tried(max(0.0, low.level - coarse)), low
    best = _bisected(tried, low, high, lambda at: at.change > limit, coarse / 2**refine)[0]
    return tried(0.0) if best is _NOTHING else best  # the tests cost FLOPs even where nothing is pruned


def least_that_saves(tried: Callable[[float], Tried], share: float, step: float) -> Tried:
    """The lowest level that saves the given share; level 1 if none does."""
    high = tried(1.0)
    return high if high.saved < share else _bisected(tried, _NOTHING, high, lambda at: at.saved >= share, step)[1]


def _bisected(
    tried: Callable[[float], Tried], low: Tried, high: Tried, enough: Callable[[Tried], bool], step: float
) -> tuple[Tried, Tried]:
    """Two levels at most ``step`` apart. ``enough`` holds at the second and not at the first."""
    while high.level - low.level > step:
        middle = tried((low.level + high.level) / 2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low, high


def even_levels(saved: Callable[[float], float], count: int) -> list[float]:
    """At most ``count`` increasing levels in (0, 1], ending at 1, between which ``saved`` rises by equal amounts."""
    known = {level: saved(level) for level in (0.0, 1.0)}
    step = (known[1.0] - known[0.0]) / count
    todo = [(0.0, 1.0)]
    while todo:
        low, high = todo.pop()
        if abs(known[high] - known[low]) > step and high - low > _FINEST:
            middle = (low + high) / 2
            known[middle] = saved(middle)
            todo += [(low, middle), (middle, high)]
    levels = sorted(known)
    rising = list(itertools.accumulate((known[level] for level in levels), max))
    wanted = [known[0.0] + (rising[-1] - known[0.0]) * k / count for k in range(1, count)]
    found = [*(_at(value, rising, levels) for value in wanted), 1.0]
    return [high for low, high in itertools.pairwise([0.0, *found]) if high > low]


def _at(value: float, rising: list[float], levels: list[float]) -> float:
    """The interpolated level at which the saving reaches a value."""
    for (a, low), (b, high) in itertools.pairwise(zip(rising, levels, strict=True)):
        if a <= value < b:
            return low + (high - low) * (value - a) / (b - a)
    return levels[-1]
