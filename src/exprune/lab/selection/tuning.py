"""Determine the heuristic's setting: as given, for a target on validation, or with a guarantee."""

import math
from typing import Any

from omegaconf import DictConfig

from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.core.settings import real, whole
from exprune.lab.configured import heuristic_of, knob_to_find
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.selection.guarantee import promised
from exprune.lab.selection.knobs import maker
from exprune.lab.selection.targets import found


def check_tuning(cfg: DictConfig) -> None:
    """Check that the settings say how the heuristic's setting is determined.

    Raises:
        SettingError: If neither the setting nor a target is set, if a target or ``refine`` is not valid, or if a
            guarantee is requested for something other than a drop.
    """
    settings, knob = cfg.exprune, knob_to_find(cfg)
    if (confidence := settings.get("confidence")) is not None:
        check_promise(cfg)
        if knob is None:
            given = settings.knob
            raise SettingError(f"exprune.confidence={confidence}: finds {given} itself; set exprune.{given}=null")
        _check_grid(cfg)
    if knob is not None:
        _check_target(cfg, _target(cfg))
        whole(settings.refine, "exprune.refine", "0 to 10, the halvings of the last step", lambda n: 0 <= n <= 10)


def check_promise(cfg: DictConfig) -> None:
    """Check that the settings ask for a valid guarantee: a probability, and a drop.

    Raises:
        SettingError: If they do not.
    """
    settings, wanted = cfg.exprune, "a probability above 0 and below 1, such as 0.95; or null"
    confidence = real(settings.confidence, "exprune.confidence", wanted, lambda p: 0 < p < 1)
    others = [name for name in ("target_saved", "target_kl") if settings.get(name) is not None]
    if settings.target_drop is None or others:
        other = others[0] if others else "target_saved"
        raise SettingError(
            f"exprune.confidence={confidence}: needs a limit on the drop; set target_drop=1 and {other}=null"
        )
    if settings.refine:
        raise SettingError(
            f"exprune.refine={settings.refine}: a promise only tries the settings of exprune.grid; set refine=0"
        )
    _check_target(cfg, "target_drop")


def _check_target(cfg: DictConfig, target: str) -> None:
    """Raise a SettingError unless ``exprune.target_drop``, ``_kl`` or ``_saved`` is a number of at least 0."""
    real(cfg.exprune[target], f"exprune.{target}", "a number, at least 0", lambda x: 0 <= x < math.inf)


def _check_grid(cfg: DictConfig) -> None:
    """Raise a SettingError unless ``exprune.grid`` is a number of settings, or a list of two or more valid ones."""
    grid = plain(cfg.exprune.grid)
    if not isinstance(grid, list):
        whole(grid, "exprune.grid", "the number of settings to try, at least 2, or a list of them", lambda n: n >= 2)
        return
    for setting in grid:
        real(setting, "exprune.grid", "a number of settings to try, or a list of numbers", lambda _: True)
        heuristic_of(cfg, **{cfg.exprune.knob: setting})
    if len(set(grid)) < 2:
        raise SettingError(f"exprune.grid={grid}: must be at least 2 different settings, or how many to try")


def tuned(subject: Subject) -> tuple[Heuristic | None, dict[str, Any] | None]:
    """The configured heuristic, ready to run; and, if a target determined its setting, what it reached on validation.

    Raises:
        SettingError: If the target cannot be reached or guaranteed.
    """
    settings = subject.cfg.exprune
    if knob_to_find(subject.cfg) is None:
        return maker(subject)(), None
    target = _target(subject.cfg)
    if settings.confidence is not None:
        return promised(subject, settings[target], settings.confidence)
    return found(subject, target, settings[target])


def _target(cfg: DictConfig) -> str:
    for target in ("target_kl", "target_saved", "target_drop"):
        if cfg.exprune.get(target) is not None:
            return target
    knob = cfg.exprune.knob
    raise SettingError(f"exprune.{knob}=null: set one of exprune.{knob}, target_drop, target_kl, target_saved")
