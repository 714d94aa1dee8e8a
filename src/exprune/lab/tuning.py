"""The heuristic of an experiment: calibrated where it needs it, its knob as given or found for a target."""

import logging
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from exprune.core import CalibratedTest, ExPrune, Heuristic
from exprune.core.errors import SettingError
from exprune.lab.calibration import statistics_of
from exprune.lab.measure import drop_and_saved
from exprune.lab.subject import Subject, plain

log = logging.getLogger(__name__)

_STEPS = 10  # of a bisection: the knob's range is then known to a thousandth


def heuristic_of(cfg: DictConfig, **knobs: Any) -> Heuristic | None:
    """The configured heuristic, not calibrated yet; while its knob is to be found, with one that stops nothing."""
    knob = cfg.exprune.get("knob")
    if knob is not None and cfg.exprune[knob] is None:
        knobs = {knob: 0.0, **knobs}
    return instantiate(cfg.exprune.heuristic, **knobs, _convert_="all")


Maker = Callable[..., Heuristic]


def maker(subject: Subject) -> Maker:
    """What makes the configured heuristic with given knobs, ready to run; its statistics are read or measured once."""
    needed = isinstance(heuristic_of(subject.cfg), CalibratedTest)
    statistics = statistics_of(subject) if needed else None

    def make(**knobs: Any) -> Heuristic | None:
        heuristic = heuristic_of(subject.cfg, **knobs)
        if statistics is not None:
            heuristic.statistics = statistics
        return heuristic

    return make


def tuned(subject: Subject) -> tuple[Heuristic, dict[str, float] | None]:
    """The configured heuristic, ready to run; and, where a target set its knob, what it reached on validation.

    Raises:
        SettingError: two targets, or one that cannot be reached.
    """
    settings = subject.cfg.exprune
    targets = {k: v for k in ("target_drop", "target_saved") if (v := settings.get(k)) is not None}
    if settings.get("knob") is None or settings[settings.knob] is not None:
        return maker(subject)(), None
    if len(targets) != 1:
        asked = " and ".join(f"exprune.{k}={v}" for k, v in targets.items()) or f"exprune.{settings.knob}=null"
        raise SettingError(f"{asked}: set one of exprune.{settings.knob}, target_drop, target_saved")
    (target, value) = targets.popitem()
    return _found(subject, target, value)


def _found(subject: Subject, target: str, value: Any) -> tuple[Heuristic, dict[str, float]]:
    """Bisect the knob on the validation split: the most that is within the drop, the least that saves as much."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise SettingError(f"exprune.{target}={value}: a number, at least 0")
    knob, of_drop = subject.cfg.exprune.knob, target == "target_drop"
    dense, make = subject.dense("valid"), maker(subject)

    def tried(level: float) -> dict[str, float]:
        heuristic = make(**{knob: _LEVELS[knob](level)})
        run = ExPrune(subject.sites, heuristic, gain_ratio=plain(subject.cfg.exprune.gain_ratio))
        drop, saved = drop_and_saved(subject, run, subject.loader("valid"), dense)
        return {"level": level, "valid_drop": drop, "valid_saved": saved}

    def enough(at: dict[str, float]) -> bool:
        return at["valid_drop"] > value if of_drop else at["valid_saved"] >= value

    low, high = {"level": 0.0, "valid_drop": 0.0, "valid_saved": 0.0}, tried(1.0)
    if not of_drop and not enough(high):
        raise SettingError(
            f"exprune.{target}={value}: out of reach; the most that can be saved is {high['valid_saved']:.3f}"
        )
    for _ in tqdm(range(_STEPS), desc=f"{target}={value}", disable=None, leave=False):
        middle = tried((low["level"] + high["level"]) / 2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    found = low if of_drop else high
    if of_drop and not enough(high):  # everything is within the drop
        found = high
    setting = _LEVELS[knob](found.pop("level"))
    log.info(
        "%s=%s: %s=%.4g, on validation a drop of %.3f points, %.2f %% saved",
        target,
        value,
        knob,
        setting,
        found["valid_drop"],
        100 * found["valid_saved"],
    )
    return make(**{knob: setting}), {target: value, **found}


# Level 0 stops nothing or next to nothing, 1 as much as the knob allows.
_LEVELS = {
    "tau": lambda level: NormalDist().cdf(-12 * (1 - level)),
    "lam": lambda level: 10 ** (26 * level - 30),
}
