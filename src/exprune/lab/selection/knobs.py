"""The heuristic of an experiment, calibrated where it needs it; its one knob by levels, from cautious to bold."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from exprune.core import Heuristic
from exprune.lab.configured import heuristic_of
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.evaluation.curve import Setting
from exprune.lab.evaluation.subject import Subject, plain

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
