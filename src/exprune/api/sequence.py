"""Settings tested one after another, from cautious to bold (docs/method.md, section 11).

This is fixed-sequence testing as in *Learn then Test* (Angelopoulos, Bates, Candès, Jordan, Lei; 2021): the order of
the settings does not depend on the data that they are tested on, and the first one that fails ends it. Then the
probability that any setting which passed exceeds the tolerated drop is at most the error of one test.
"""

import math
from collections.abc import Iterable

from exprune.api.paired_tests import PairedTest
from exprune.core.errors import SettingError

_MORE = 2.0**20  # times the data, beyond which nobody will measure
_CLOSE = 1e-6


def how_many_pass(evidence: Iterable[PairedTest], drop: float, error: float) -> tuple[int, PairedTest]:
    """How many settings are shown to drop by less than ``drop`` before the first that is not.

    ``evidence`` has the test of each, in order; none is asked for after the first that fails. Also returns the test of
    the last one that passes, or, where none does, of the first.
    """
    passed, last = 0, None
    for test in evidence:
        if test.p_value(drop, error) > error:
            return passed, last or test
        passed, last = passed + 1, test
    if last is None:
        raise ValueError("no settings")
    return passed, last


def bound(test: PairedTest, error: float, most: float = 1.0) -> float:
    """The least drop that the test's data exclude: with probability 1 - error the true one is below it.

    ``most`` where they exclude none below that.
    """
    low, high = max(0.0, test.drop), most
    if low >= most or test.p_value(high, error) > error:
        return high
    while high - low > _CLOSE * most:
        middle = (low + high) / 2
        low, high = (low, middle) if test.p_value(middle, error) <= error else (middle, high)
    return high


def inputs_needed(test: PairedTest, drop: float, error: float, inputs: int) -> int | None:
    """How many inputs like these would show a drop below ``drop``; None where no number of them would."""
    low, high = 1.0, 1.0
    if test.drop >= drop:
        return None
    while test.p_value(drop, error, high) > error:
        low, high = high, 2 * high
        if high > _MORE:
            return None
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if test.p_value(drop, error, middle) <= error else (middle, high)
    return math.ceil(high * inputs)


def out_of_reach(
    test: PairedTest, drop: float, error: float, count: int, unit: str, where: str, setting: str, points: bool = False
) -> SettingError:
    """What to say where the most cautious setting, ``where``, fails: what its inputs can show, and how many could.

    Args:
        setting: what asked for the promise. points: whether drops are printed in hundredths.
    """
    scale, of = (100, " points") if points else (1, "")
    line = (
        f"{setting}: {count:,} {unit}s cannot show a drop of at most {scale * drop:g}{of} with {1 - error:.4g} "
        f"probability; the least that they can, at {where}, is {scale * bound(test, error):.3g}"
    )
    needed = inputs_needed(test, drop, error, count)
    if needed is None:
        return SettingError(f"{line}, and no number of them could: there it drops by {scale * test.drop:.3g}")
    return SettingError(f"{line}; about {needed:,} could")
