"""The configured heuristic and its setting. This module needs torch only."""

from statistics import NormalDist
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from exprune.core import Heuristic

# Functions from a level to the setting: level 0 stops (almost) nothing, level 1 as much as the setting allows.
_LEVELS = {
    "tau": lambda level: NormalDist().cdf(-12 * (1 - level)),
    "mean": lambda level: -(10 ** (2 - 6 * level)),
    "lam": lambda level: 10 ** (26 * level - 30),
    "share": lambda level: level,
}


def knob_to_find(cfg: DictConfig) -> str | None:
    """The name of the setting that must be found for a target on the validation split; None if there is none."""
    knob = cfg.exprune.get("knob")
    return knob if knob is not None and cfg.exprune[knob] is None else None


def at_level(cfg: DictConfig, level: float) -> float:
    """The setting at a level between 0 and 1."""
    return _LEVELS[cfg.exprune.get("levels", cfg.exprune.knob)](level)


def heuristic_of(cfg: DictConfig, **knobs: Any) -> Heuristic | None:
    """The configured heuristic, not yet calibrated. A setting that must still be found is one that stops nothing."""
    if (knob := knob_to_find(cfg)) is not None:
        knobs = {knob: at_level(cfg, 0.0), **knobs}
    return instantiate(cfg.exprune.heuristic, **knobs, _convert_="all")
