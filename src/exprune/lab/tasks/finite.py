"""Detect outputs that are NaN or infinite. A network whose weights diverged would still give an argmax and a metric."""

from torch import Tensor

from exprune.core.errors import SettingError
from exprune.lab.tasks.task import Task


def not_finite(outputs: Tensor) -> int:
    """The number of outputs (inputs,) that are NaN or infinite."""
    return int((~outputs.isfinite()).sum())


def check_finite(task: Task, outputs: Tensor, when: str) -> None:
    """Raise a SettingError if one of the outputs (inputs,) is NaN or infinite; its message begins with ``when``."""
    if wrong := not_finite(outputs):
        raise SettingError(not_finite_line(when, wrong, len(outputs), task.unit))


def not_finite_line(when: str, wrong: int, count: int, unit: str) -> str:
    """The message about ``wrong`` of ``count`` inputs."""
    return (
        f"{when}: the network's output is NaN or infinite for {wrong} of {count} {unit}s; its training diverged "
        "(use a lower model.task.lr), or its weights are damaged"
    )
