"""The knob for a target: what the validation split says keeps a drop, or saves a share, and no promise beyond it."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.lab.evaluation.measure import TooFar, drop_and_saved
from exprune.lab.evaluation.subject import Subject
from exprune.lab.files import kept, write_whole
from exprune.lab.selection.knobs import at_level, file_of, maker, run_at

log = logging.getLogger(__name__)

_COARSE, _FINE = 1 / 128, 1 / 1024  # steps of a knob's level; of lam a fifth and a fortieth of a decade

_BEYOND = 1.0  # points that stand out of the noise of a drop

_known: dict[str, tuple[float, float]] = {}  # drop and saving by setting: the jobs of a sweep over targets share them


def found(subject: Subject, target: str, value: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic with the most that is within the drop, or the least that saves as much; and what it reached.

    What has been measured stands in ``tried.json`` of the run's folder until then, so that an interrupted run goes on.

    Raises:
        SettingError: the target cannot be reached.
    """
    knob = subject.cfg.exprune.knob
    dense, make = subject.dense("valid"), maker(subject)
    limit = value + _BEYOND if target == "target_drop" else math.inf
    file = Path(subject.cfg.paths.output_dir) / "tried.json"
    _known.update(_interrupted(file))
    with tqdm(desc=f"{target}={value}", unit=" passes", disable=None, leave=False) as bar:

        def tried(level: float) -> _Tried:
            run = run_at(subject, make, at_level(subject.cfg, level))
            whole = file_of(subject, run).stem
            names = (whole, f"{whole}, drop over {limit:g}")  # of a pass to the end, and of one that was not worth it
            if (name := next((name for name in names if name in _known), None)) is None:
                bar.update()
                try:
                    name, figures = whole, drop_and_saved(subject, run, subject.loader("valid"), dense, limit)
                except TooFar:
                    name, figures = names[1], (math.inf, math.nan)
                _known[name] = figures
                write_whole(file, lambda partial: partial.write_text(json.dumps(_known)))
            return _Tried(level, *_known[name])

        try:
            if target == "target_drop":
                best = _most_within(tried, value, subject.cfg.exprune.refine)
            else:
                best = _least_that_saves(tried, value)
        except SettingError:  # out of reach, whenever it goes on
            file.unlink(missing_ok=True)
            raise
    file.unlink(missing_ok=True)
    setting = at_level(subject.cfg, best.level)
    log.info(
        "%s=%s: %s=%.4g, on validation a drop of %.3f points, %.2f %% saved",
        target,
        value,
        knob,
        setting,
        best.drop,
        100 * best.saved,
    )
    return make(**{knob: setting}), {target: value, "valid_drop": best.drop, "valid_saved": best.saved}


def _interrupted(file: Path) -> dict[str, tuple[float, float]]:
    """What a run that was interrupted has measured, by setting."""
    found = kept(file, _measured, "what it held is measured anew")
    if found:
        log.info("going on with %d settings that an interrupted run measured (%s)", len(found), file)
    return found or {}


def _measured(file: Path) -> dict[str, tuple[float, float]]:
    found = {name: (drop, saved) for name, (drop, saved) in json.loads(file.read_text()).items()}
    if not all(isinstance(figure, int | float) for figures in found.values() for figure in figures):
        raise ValueError("a drop or a saving is no number")
    return found


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
