"""Schedules of static pruning: the trainings that follow the dense one (docs/method.md, section 3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from exprune.errors import SettingError


@dataclass(frozen=True)
class Phase:
    """One training. ``sparsity_at(epoch)`` is the share of weights that is removed when that epoch starts."""

    name: str
    epochs: int
    sparsity_at: Callable[[int], float]


def phases(static: DictConfig, dense_epochs: int | None) -> list[Phase]:
    """The trainings of a schedule, in order.

    ``gradual`` is one training. Over its first part (``ramp``), the sparsity grows to ``sparsity`` as a cubic, fast at
    first and slowly at the end. ``rounds`` keeps the share ``keep_rate`` of the remaining weights in each round, then
    trains. There are ``rounds`` rounds, or as many as needed to reach ``sparsity``.

    Args:
        static: The configuration of static pruning.
        dense_epochs: The epochs of the dense training before; None if there was none.

    Raises:
        SettingError: If a number is out of range, or if the schedule is unknown.
    """
    sparsity = _checked(static, "sparsity", lambda value: 0 <= value < 1, "at least 0, below 1")
    if static.epochs is None and dense_epochs is not None:
        share = _checked(static, "epochs_share", lambda value: value > 0, "above 0")
        epochs = math.ceil(share * dense_epochs)
    else:
        epochs = _whole(static, "epochs")
    if static.schedule == "gradual":
        ramp = _checked(static, "ramp", lambda value: 0 <= value <= 1, "from 0 to 1")
        steps = max(1, round(ramp * epochs))
        return [Phase("gradual", epochs, lambda epoch: sparsity * (1 - max(0.0, 1 - (epoch + 1) / steps) ** 3))]
    if static.schedule != "rounds":
        raise SettingError(f"static.schedule={static.schedule}: must be gradual or rounds")
    keep_rate = _checked(static, "keep_rate", lambda value: 0 < value <= 1, "above 0, at most 1")
    if static.rounds is None:
        _checked(static, "keep_rate", lambda value: value < 1, f"below 1, to reach a sparsity of {sparsity}")
        rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(keep_rate) - 1e-9))
    else:
        rounds = _whole(static, "rounds")
    gone = [1 - keep_rate**number for number in range(1, rounds + 1)]
    return [Phase(f"round-{number:03d}", epochs, _always(share)) for number, share in enumerate(gone, 1)]


def _always(share: float) -> Callable[[int], float]:
    return lambda epoch: share


def _whole(static: DictConfig, key: str) -> int:
    return int(_checked(static, key, lambda value: value >= 1 and value == int(value), "a whole number, at least 1"))


def _checked(static: DictConfig, key: str, fits: Callable[[float], bool], what: str) -> float:
    value = static[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise SettingError(f"static.{key}={value!r}: must be {what}")
    return value


def check_static(cfg: DictConfig) -> None:
    """Raise a SettingError if the schedule's settings are not valid."""
    if cfg.static.name != "none":
        phases(cfg.static, cfg.model.get("epochs"))
