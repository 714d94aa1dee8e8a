"""Fixed-sequence testing of settings from cautious to bold (docs/method.md, section 11).

The method is that of *Learn then Test* (Angelopoulos, Bates, Candès, Jordan, Lei; 2021). The order of the settings does
not depend on the data they are tested on, and testing ends at the first failure. Then the probability that any
setting which passed exceeds the tolerated drop is at most the error of a single test.
"""

import math
from collections.abc import Iterable

from exprune.api.paired_tests import PairedTest
from exprune.core.errors import SettingError

_MORE = 2.0**20  # largest multiple of the data that is considered
_CLOSE = 1e-6  # relative precision of the bisection


def how_many_pass(evidence: Iterable[PairedTest], drop: float, error: float) -> tuple[int, PairedTest]:
    """The number of settings shown to drop by less than ``drop`` before the first that is not.

    Args:
        evidence: The tests of the settings, in order. No test is requested after the first failure.
        drop: The tolerated drop.
        error: The tolerated probability of an error.

    Returns:
        The number, and the test of the last setting that passed; if none passed, the test of the first setting.
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
    """The smallest drop that the data exclude: with probability 1 - error the true drop is below it.

    It is ``most`` if the data exclude no drop below that.
    """
    low, high = max(0.0, test.drop), most
    if low >= most or test.p_value(high, error) > error:
        return high
    while high - low > _CLOSE * most:
        middle = (low + high) / 2
        low, high = (low, middle) if test.p_value(middle, error) <= error else (middle, high)
    return high


def inputs_needed(test: PairedTest, drop: float, error: float, inputs: int) -> int | None:
    """The number of inputs like these that would show a drop below ``drop``; None if no number would."""
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
    """The error for a promise that even the most cautious setting cannot keep.

    The message says what limit the inputs can show, and how many inputs would be needed.

    Args:
        test: The test of the most cautious setting.
        drop: The tolerated drop.
        error: The tolerated probability of an error.
        count: The number of inputs.
        unit: The name of an input, in the singular.
        where: The most cautious setting.
        setting: The setting that asked for the promise.
        points: Print drops in percentage points.
    """
    scale, of = (100, " points") if points else (1, "")
    line = (
        f"{setting}: {count:,} {unit}s cannot show a drop of at most {scale * drop:g}{of} with {1 - error:.4g} "
        f"probability; the smallest limit they can show, at {where}, is {scale * bound(test, error):.3g}"
    )
    needed = inputs_needed(test, drop, error, count)
    if needed is None:
        return SettingError(f"{line}, and no number of them would suffice: the drop there is {scale * test.drop:.3g}")
    return SettingError(f"{line}; about {needed:,} would suffice")
