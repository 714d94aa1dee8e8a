"""Settings tested one after another, from cautious to bold (docs/method.md, section 11).

This is fixed-sequence testing as in *Learn then Test* (Angelopoulos, Bates, Candès, Jordan, Lei; 2021): the order of
the settings does not depend on the data that they are tested on, and the first one that fails ends it. Then the
probability that any setting which passed exceeds the tolerated drop is at most the error of one test.
"""

import math
from collections.abc import Iterable

from exprune.core.errors import SettingError
from exprune.lab.tasks.paired_tests import PairedTest

_MORE = 2.0**20  # times the data, beyond which nobody will measure
_CLOSE = 1e-4  # of a point


def how_many_pass(evidence: Iterable[PairedTest], drop: float, error: float) -> tuple[int, PairedTest]:
    """How many settings are shown to drop by less than ``drop`` points before the first that is not.

    ``evidence`` has the test of each, in order; none is asked for after the first that fails. Also returns the test of
    the last one that passes, or, where none does, of the first.
    """
    passed, last = 0, None
    for test in evidence:
        if test.p_value(drop / 100, error) > error:
            return passed, last or test
        passed, last = passed + 1, test
    if last is None:
        raise ValueError("no settings")
    return passed, last


def bound(test: PairedTest, error: float) -> float:
    """The least drop, in points, that the test's data exclude: with probability 1 - error the true one is below it."""
    low, high = max(0.0, 100 * test.drop), 100.0
    if test.p_value(high / 100, error) > error:
        return high
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (low, middle) if test.p_value(middle / 100, error) <= error else (middle, high)
    return high


def inputs_needed(test: PairedTest, drop: float, error: float, inputs: int) -> int | None:
    """How many inputs like these would show a drop below ``drop`` points; None where no number of them would."""
    low, high = 1.0, 1.0
    if 100 * test.drop >= drop:
        return None
    while test.p_value(drop / 100, error, high) > error:
        low, high = high, 2 * high
        if high > _MORE:
            return None
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if test.p_value(drop / 100, error, middle) <= error else (middle, high)
    return math.ceil(high * inputs)


def out_of_reach(test: PairedTest, drop: float, error: float, count: int, unit: str, where: str) -> SettingError:
    """What to say where the most cautious setting, ``where``, fails: what its inputs can show, and how many could."""
    line = (
        f"exprune.target_drop={drop:g}: {count:,} {unit}s cannot show a drop of at most {drop:g} points with "
        f"{1 - error:.4g} probability; the least that they can, at {where}, is {bound(test, error):.2f}"
    )
    needed = inputs_needed(test, drop, error, count)
    if needed is None:
        return SettingError(f"{line}, and no number of them could: there it drops by {100 * test.drop:.2f}")
    return SettingError(f"{line}; about {needed:,} could")
