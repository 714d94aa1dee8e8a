"""The heuristic of a configuration, with the knob that it has or begins with. Needs no more than torch."""

from statistics import NormalDist
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from exprune.core import Heuristic

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
