"""The knob for a target: what the validation split says keeps a drop, or saves a share, and no promise beyond it."""

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from tqdm import tqdm

from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.lab.configured import at_level
from exprune.lab.evaluation.curve import Curve
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.knobs import maker, setting_at

log = logging.getLogger(__name__)

_COARSE, _FINE = 1 / 128, 1 / 1024  # steps of a knob's level; of lam a fifth and a fortieth of a decade

_BEYOND = 1.0  # points that stand out of the noise of a drop


def found(subject: Subject, target: str, value: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic with the most that is within the drop, or the least that saves as much; and what it reached.

    Raises:
        SettingError: the target cannot be reached.
    """
    cfg = subject.cfg
    curve = Curve(subject, subject.inputs("valid"), value + _BEYOND if target == "target_drop" else math.inf)
    make = maker(subject)
    with tqdm(desc=f"{target}={value}", unit=" passes", disable=None, leave=False) as bar:

        @cache
        def tried(level: float) -> _Tried:
            bar.update()
            point = curve.at(setting_at(cfg, make, at_level(cfg, level)))
            return _Tried(level, point.drop, point.saved)

        if target == "target_drop":
            best = _most_within(tried, value, cfg.exprune.refine)
        else:
            best = _least_that_saves(tried, value)
    knob = at_level(cfg, best.level)
    found = f"on validation a drop of {best.drop:.3f} points, {100 * best.saved:.2f} % saved"
    log.info("%s=%s: %s=%.4g, %s", target, value, cfg.exprune.knob, knob, found)
    return setting_at(cfg, make, knob)[0], {target: value, "valid_drop": best.drop, "valid_saved": best.saved}


class _Tried(NamedTuple):
    level: float
    drop: float  # points
    saved: float


_NOTHING = _Tried(0.0, 0.0, 0.0)


def _most_within(tried: Callable[[float], _Tried], drop: float, refine: int) -> _Tried:
    """From a point more than is asked, which stands out of the noise of the drop, down to the first that is within it.

    Bisecting for the drop itself would end at whichever chance crossing it meets first; it is for the last step alone,
    so often as ``refine`` says.
    """
    low, high = _NOTHING, tried(1.0)
    if high.drop <= drop:
        return high
    if high.drop > drop + _BEYOND:
        low, high = _bisected(tried, low, high, lambda at: at.drop > drop + _BEYOND, _COARSE)
    else:
        low = high
    while low.drop > drop and low.level > 0:
        low, high = tried(max(0.0, low.level - _COARSE)), low
    best = _bisected(tried, low, high, lambda at: at.drop > drop, _COARSE / 2**refine)[0]
    return tried(0.0) if best is _NOTHING else best  # what its tests cost is not nothing


def _least_that_saves(tried: Callable[[float], _Tried], share: float) -> _Tried:
    high = tried(1.0)
    if high.saved < share:
        raise SettingError(
            f"exprune.target_saved={share}: out of reach; the most that can be saved is {high.saved:.3f}"
        )
    return _bisected(tried, _NOTHING, high, lambda at: at.saved >= share, _FINE)[1]


def _bisected(
    tried: Callable[[float], _Tried], low: _Tried, high: _Tried, enough: Callable[[_Tried], bool], step: float
) -> tuple[_Tried, _Tried]:
    """Two levels at most a step apart, the second of which is enough."""
    while high.level - low.level > step:
        middle = tried((low.level + high.level) / 2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low, high
