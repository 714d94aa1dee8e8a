"""The heuristic of an experiment: calibrated where it needs it, its knob as given or found for a target."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from exprune.core import ExPrune, Heuristic
from exprune.core.errors import SettingError
from exprune.lab.evaluation.measure import TooFar, about, drop_and_saved
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.selection.calibration import statistics_of

log = logging.getLogger(__name__)

_COARSE, _FINE = 1 / 128, 1 / 1024  # steps of a knob's level; of lam a fifth and a fortieth of a decade

_BEYOND = 1.0  # points that stand out of the noise of a drop

_known: dict[Path, tuple[float, float]] = {}  # drop and saving by setting: the jobs of a sweep over targets share them


def knob_to_find(cfg: DictConfig) -> str | None:
    """The name of the knob that is to be found for a target on the validation split; None where none is."""
    knob = cfg.exprune.get("knob")
    return knob if knob is not None and cfg.exprune[knob] is None else None


def heuristic_of(cfg: DictConfig, **knobs: Any) -> Heuristic | None:
    """The configured heuristic, not calibrated yet; while its knob is to be found, with one that stops nothing."""
    if (knob := knob_to_find(cfg)) is not None:
        knobs = {knob: 0.0, **knobs}
    return instantiate(cfg.exprune.heuristic, **knobs, _convert_="all")


Maker = Callable[..., Heuristic | None]


def maker(subject: Subject) -> Maker:
    """What makes the configured heuristic with given knobs, ready to run; its statistics are read or measured once."""
    untested = heuristic_of(subject.cfg)
    statistics = statistics_of(subject) if untested is not None and untested.needs_statistics else None

    def make(**knobs: Any) -> Heuristic | None:
        heuristic = heuristic_of(subject.cfg, **knobs)
        if heuristic is not None and statistics is not None:
            heuristic.statistics = statistics
        return heuristic

    return make


def tuned(subject: Subject) -> tuple[Heuristic | None, dict[str, float] | None]:
    """The configured heuristic, ready to run; and, where a target set its knob, what it reached on validation.

    Raises:
        SettingError: neither the knob nor a target is set, or the target cannot be reached.
    """
    settings = subject.cfg.exprune
    if (knob := knob_to_find(subject.cfg)) is None:
        return maker(subject)(), None
    for target in ("target_saved", "target_drop"):
        if settings[target] is not None:
            return _found(subject, target, settings[target])
    raise SettingError(f"exprune.{knob}=null: set one of exprune.{knob}, target_drop, target_saved")


def _found(subject: Subject, target: str, value: Any) -> tuple[Heuristic | None, dict[str, float]]:
    """Find the knob on the validation split: the most that is within the drop, the least that saves as much."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SettingError(f"exprune.{target}={value}: a number, at least 0")
    knob = subject.cfg.exprune.knob
    dense, make, gain_ratio = subject.dense("valid"), maker(subject), plain(subject.cfg.exprune.gain_ratio)
    at_level = _LEVELS[subject.cfg.exprune.get("levels", knob)]
    limit = value + _BEYOND if target == "target_drop" else math.inf
    with tqdm(desc=f"{target}={value}", unit=" passes", disable=None, leave=False) as bar:

        def tried(level: float) -> _Tried:
            run = ExPrune(subject.sites, make(**{knob: at_level(level)}), gain_ratio=gain_ratio)
            file = subject.pass_file("valid", about(run, gain_ratio))
            if file not in _known:
                bar.update()
                try:
                    _known[file] = drop_and_saved(subject, run, subject.loader("valid"), dense, limit)
                except TooFar:
                    return _Tried(level, math.inf, math.nan)
            return _Tried(level, *_known[file])

        found = (_most_within if target == "target_drop" else _least_that_saves)(tried, value)
    setting = at_level(found.level)
    log.info(
        "%s=%s: %s=%.4g, on validation a drop of %.3f points, %.2f %% saved",
        target,
        value,
        knob,
        setting,
        found.drop,
        100 * found.saved,
    )
    return make(**{knob: setting}), {target: value, "valid_drop": found.drop, "valid_saved": found.saved}


class _Tried(NamedTuple):
    level: float
    drop: float  # points
    saved: float


_NOTHING = _Tried(0.0, 0.0, 0.0)


def _most_within(tried: Callable[[float], _Tried], drop: float) -> _Tried:
    """From a point more than is asked, which stands out of the noise of the drop, down to the first that is within it.

    Bisecting for the drop itself would end at whichever chance crossing it meets first.
    """
    low, high = _NOTHING, tried(1.0)
    if high.drop <= drop:
        return high
    if high.drop > drop + _BEYOND:
        low, _ = _bisected(tried, low, high, lambda at: at.drop > drop + _BEYOND, _COARSE)
    else:
        low = high
    while low.drop > drop and low.level > 0:
        low = tried(max(0.0, low.level - _COARSE))
    return low


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


# Level 0 stops nothing or next to nothing, 1 as much as the knob allows.
_LEVELS = {
    "tau": lambda level: NormalDist().cdf(-12 * (1 - level)),
    "lam": lambda level: 10 ** (26 * level - 30),
    "share": lambda level: level,
}
