"""The heuristic of an experiment, calibrated where it needs it; its one knob by levels, from cautious to bold."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from exprune.core import Heuristic
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.evaluation.curve import Setting
from exprune.lab.evaluation.subject import Subject, plain

# Level 0 stops nothing or next to nothing, 1 as much as the knob allows.
_LEVELS = {
    "tau": lambda level: NormalDist().cdf(-12 * (1 - level)),
    "mean": lambda level: -(10 ** (2 - 6 * level)),
    "lam": lambda level: 10 ** (26 * level - 30),
    "share": lambda level: level,
}


def knob_to_find(cfg: DictConfig) -> str | None:
    """The name of the knob that is to be found for a target on the validation split; None where none is."""
    knob = cfg.exprune.get("knob")
    return knob if knob is not None and cfg.exprune[knob] is None else None


def at_level(cfg: DictConfig, level: float) -> float:
    """The knob at a level between 0 and 1."""
    return _LEVELS[cfg.exprune.get("levels", cfg.exprune.knob)](level)


def heuristic_of(cfg: DictConfig, **knobs: Any) -> Heuristic | None:
    """The configured heuristic, not calibrated yet; while its knob is to be found, with one that stops nothing."""
    if (knob := knob_to_find(cfg)) is not None:
        knobs = {knob: at_level(cfg, 0.0), **knobs}
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


def setting_at(cfg: DictConfig, make: Maker, knob: float) -> Setting:
    """The setting with the heuristic's knob there."""
    return make(**{cfg.exprune.knob: knob}), plain(cfg.exprune.gain_ratio)
