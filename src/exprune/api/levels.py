"""How bold a heuristic is to be, by its level: 0 stops next to nothing, 1 as much as its setting allows."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

_FINEST = 1 / 512  # of a level, between two of which the saving is taken to rise evenly


class Tried(NamedTuple):
    """A level as it was measured: how far the outputs changed or a metric fell, and the share of the FLOPs saved."""

    level: float
    change: float
    saved: float


_NOTHING = Tried(0.0, 0.0, 0.0)


def most_within(
    tried: Callable[[float], Tried], limit: float, coarse: float, refine: int = 0, noise: float = 0.0
) -> Tried:
    """The boldest level whose change is within a limit; level 0 where none is.

    From a point that is ``noise`` more than is asked, which stands out of the noise of the change, down to the first
    that is within it. Bisecting for the limit itself would end at whichever chance crossing it meets first; it is for
    the last step alone.

    Args:
        coarse: the step of the level. refine: how often the last step is halved.
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
    return tried(0.0) if best is _NOTHING else best  # what its tests cost is not nothing


def least_that_saves(tried: Callable[[float], Tried], share: float, step: float) -> Tried:
    """The most cautious level that saves a share; level 1 where none does."""
    high = tried(1.0)
    return high if high.saved < share else _bisected(tried, _NOTHING, high, lambda at: at.saved >= share, step)[1]


def _bisected(
    tried: Callable[[float], Tried], low: Tried, high: Tried, enough: Callable[[Tried], bool], step: float
) -> tuple[Tried, Tried]:
    """Two levels at most a step apart, the second of which is enough."""
    while high.level - low.level > step:
        middle = tried((low.level + high.level) / 2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low, high


def even_levels(saved: Callable[[float], float], count: int) -> list[float]:
    """At most ``count`` levels in (0, 1], increasing up to 1, between which ``saved`` rises by equal parts."""
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
    """The level, by interpolation, at which what is saved comes to a value."""
    for (a, low), (b, high) in itertools.pairwise(zip(rising, levels, strict=True)):
        if a <= value < b:
            return low + (high - low) * (value - a) / (b - a)
    return levels[-1]
