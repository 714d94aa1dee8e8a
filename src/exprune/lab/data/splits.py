"""Splits of a data set: their batches, and checks that a task can be trained and measured on them."""

from typing import Any

import lightning
import torch
from torch.utils.data import Subset

from exprune.core.errors import SettingError


class SplitData(lightning.LightningDataModule):
    """A data set with Lightning's three loaders and one for calibration. A subclass provides examples and batches."""

    def examples(self, part: str) -> Any:
        """The examples of ``train``, ``valid`` or ``test``, as an indexable collection."""
        raise NotImplementedError

    def batches(self, examples: Any) -> Any:
        """Batches of examples in their order, for measurements."""
        raise NotImplementedError

    def val_dataloader(self) -> Any:
        return self.batches(self.examples("valid"))

    def test_dataloader(self) -> Any:
        return self.batches(self.examples("test"))

    def calibration_dataloader(self, inputs: int, generator: torch.Generator | None) -> Any:
        """Batches of ``inputs`` randomly drawn inputs (blocks, graphs) of the training split."""
        examples = self.examples("train")
        return self.batches(Subset(examples, torch.randperm(len(examples), generator=generator)[:inputs]))  # type: ignore[arg-type]


def batches_of(data: lightning.LightningDataModule, split: str) -> Any:
    """The loader of ``test`` or ``valid``."""
    return {"test": data.test_dataloader, "valid": data.val_dataloader}[split]()


def check_measurable(task: Any, batches: Any, name: str) -> None:
    """Check that the task's metric is defined on these batches (a loader or a list).

    Raises:
        SettingError: If there are no batches, or if they lack a label that the metric needs. The message uses ``name``.
    """
    if len(batches) == 0:
        raise SettingError(f"{name}: it contains no {task.unit}; use more of them (data.limit), or other data")
    if hasattr(task, "check_labels"):
        task.check_labels(batches, name)


def check_trainable(task: Any, data: lightning.LightningDataModule) -> None:
    """Check that there is something to train on, and that the metric used to compare epochs is defined.

    Raises:
        SettingError: If not.
    """
    if len(data.train_dataloader()) == 0:
        raise SettingError(f"training split: it contains no {task.unit}; use more of them, or other data")
    check_measurable(task, data.val_dataloader(), "split=valid, which training is judged by")
