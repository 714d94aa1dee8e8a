"""Outputs that are no numbers: a network whose weights diverged still gives an argmax, and an argmax a metric."""

from torch import Tensor

from exprune.core.errors import SettingError
from exprune.lab.tasks.task import Task


def not_finite(outputs: Tensor) -> int:
    """How many of the inputs have an output, (inputs,), that is NaN or infinite."""
    return int((~outputs.isfinite()).sum())


def check_finite(task: Task, outputs: Tensor, when: str) -> None:
    """Raises SettingError where one of the task's outputs, (inputs,), is NaN or infinite; ``when`` begins its line."""
    if wrong := not_finite(outputs):
        raise SettingError(not_finite_line(when, wrong, len(outputs), task.unit))


def not_finite_line(when: str, wrong: int, count: int, unit: str) -> str:
    """The one line about ``wrong`` of ``count`` inputs."""
    return (
        f"{when}: the network's output is NaN or infinite for {wrong} of {count} {unit}s; its training diverged "
        "(a lower model.task.lr), or its weights are damaged"
    )
