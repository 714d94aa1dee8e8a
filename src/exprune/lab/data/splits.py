"""The splits of a data set: their batches, and whether a task can be trained and measured on them."""

from collections.abc import Iterable
from typing import Any

import lightning

from exprune.core.errors import SettingError


def batches_of(data: lightning.LightningDataModule, split: str) -> Any:
    """The loader of ``test`` or ``valid``; raises SettingError where ``split`` is neither."""
    loaders = {"test": data.test_dataloader, "valid": data.val_dataloader}
    if split not in loaders:
        raise SettingError(f"split={split}: test or valid")
    return loaders[split]()


def check_measurable(task: lightning.LightningModule, batches: Iterable, name: str) -> None:
    """Whether the task's metric is defined on these batches (a loader or a list), which an error calls ``name``.

    Raises:
        SettingError: there are none, or they have not every label that the metric needs.
    """
    if len(batches) == 0:
        raise SettingError(f"{name}: there is no {task.unit} in it; use more of them (data.limit), or other data")
    if hasattr(task, "check_labels"):
        task.check_labels(batches, name)


def check_trainable(task: lightning.LightningModule, data: lightning.LightningDataModule) -> None:
    """Whether there is something to train on, and the metric by which epochs are compared is defined.

    Raises:
        SettingError: it is not so.
    """
    if len(data.train_dataloader()) == 0:
        raise SettingError(f"training split: there is no {task.unit} in it; use more, or other data")
    check_measurable(task, data.val_dataloader(), "split=valid, which training is judged by")
