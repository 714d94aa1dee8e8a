"""The splits of a data set: their batches, and whether a task can be trained and measured on them."""

from typing import Any

import lightning
import torch
from torch.utils.data import Subset

from exprune.core.errors import SettingError


class SplitData(lightning.LightningDataModule):
    """A data set: Lightning's three loaders, and one more. A subclass says what is in a part and how it is batched."""

    def examples(self, part: str) -> Any:
        """What ``train``, ``valid`` or ``test`` holds, to be indexed."""
        raise NotImplementedError

    def batches(self, examples: Any) -> Any:
        """Batches of examples, in their order, to be measured on."""
        raise NotImplementedError

    def val_dataloader(self) -> Any:
        return self.batches(self.examples("valid"))

    def test_dataloader(self) -> Any:
        return self.batches(self.examples("test"))

    def calibration_dataloader(self, inputs: int, generator: torch.Generator | None) -> Any:
        """Some batches of the training split, of so many inputs (blocks, graphs) drawn at random."""
        examples = self.examples("train")
        return self.batches(Subset(examples, torch.randperm(len(examples), generator=generator)[:inputs]))  # type: ignore[arg-type]


def batches_of(data: lightning.LightningDataModule, split: str) -> Any:
    """The loader of ``test`` or ``valid``."""
    return {"test": data.test_dataloader, "valid": data.val_dataloader}[split]()


def check_measurable(task: Any, batches: Any, name: str) -> None:
    """Whether the task's metric is defined on these batches (a loader or a list), which an error calls ``name``.

    Raises:
        SettingError: there are none, or they have not every label that the metric needs.
    """
    if len(batches) == 0:
        raise SettingError(f"{name}: there is no {task.unit} in it; use more of them (data.limit), or other data")
    if hasattr(task, "check_labels"):
        task.check_labels(batches, name)


def check_trainable(task: Any, data: lightning.LightningDataModule) -> None:
    """Whether there is something to train on, and the metric by which epochs are compared is defined.

    Raises:
        SettingError: it is not so.
    """
    if len(data.train_dataloader()) == 0:
        raise SettingError(f"training split: there is no {task.unit} in it; use more, or other data")
    check_measurable(task, data.val_dataloader(), "split=valid, which training is judged by")
