"""How the heuristic of an experiment gets its knob: as given, for a target on validation, or with a promise."""

from typing import Any

from omegaconf import DictConfig

from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.core.settings import whole
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.grid import check_grid
from exprune.lab.selection.knobs import knob_to_find, maker
from exprune.lab.selection.promise import check_promise, check_target, promised
from exprune.lab.selection.targets import found


def check_tuning(cfg: DictConfig) -> None:
    """Whether the settings say how the knob is found.

    Raises:
        SettingError: neither the knob nor a target is set, a target or ``refine`` is no such number, or a promise is
            asked for of something else than a drop.
    """
    settings, knob = cfg.exprune, knob_to_find(cfg)
    if (confidence := settings.get("confidence")) is not None:
        check_promise(cfg)
        if knob is None:
            given = settings.knob
            raise SettingError(f"exprune.confidence={confidence}: finds {given} itself; exprune.{given}=null")
        check_grid(cfg)
    if knob is not None:
        check_target(cfg, _target(cfg))
        whole(settings.refine, "exprune.refine", "how often the last step is halved, 0 to 10", lambda n: 0 <= n <= 10)


def tuned(subject: Subject) -> tuple[Heuristic | None, dict[str, Any] | None]:
    """The configured heuristic, ready to run; and, where a target set its knob, what it reached on validation.

    Raises:
        SettingError: the target cannot be reached, or not be promised.
    """
    settings = subject.cfg.exprune
    if knob_to_find(subject.cfg) is None:
        return maker(subject)(), None
    target = _target(subject.cfg)
    if settings.confidence is not None:
        return promised(subject, settings[target], settings.confidence)
    return found(subject, target, settings[target])


def _target(cfg: DictConfig) -> str:
    for target in ("target_saved", "target_drop"):
        if cfg.exprune[target] is not None:
            return target
    knob = cfg.exprune.knob
    raise SettingError(f"exprune.{knob}=null: set one of exprune.{knob}, target_drop, target_saved")
