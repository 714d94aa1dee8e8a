"""Make the heuristic of an experiment, calibrated if needed, with a given setting."""

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
    """A function that makes the configured heuristic with given settings. Statistics are measured only once."""
    untested = heuristic_of(subject.cfg)
    statistics = statistics_of(subject) if untested is not None and untested.needs_statistics else None

    def make(**knobs: Any) -> Heuristic | None:
        heuristic = heuristic_of(subject.cfg, **knobs)
        if heuristic is not None and statistics is not None:
            heuristic.statistics = statistics
        return heuristic

    return make


def setting_at(cfg: DictConfig, make: Maker, knob: float) -> Setting:
    """The setting with this value of the heuristic's setting, and the configured gain ratio."""
    return make(**{cfg.exprune.knob: knob}), plain(cfg.exprune.gain_ratio)
