"""Averaging of the weights of the last training steps (Izmailov, Podoprikhin and others 2018)."""

import itertools

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import update_bn

from exprune.lab.examples.images.cycles import tail_start

_BATCHES = 120  # from which the statistics of BatchNorms are computed


class TailMean(WeightAveraging):
    """Validate and keep the network itself, and in the last steps the mean of the weights after each step.

    The statistics of its BatchNorms are then recomputed from training images. With the statistics of a single step,
    ResNet18 had an accuracy of 0.87 instead of 0.915.

    Args:
        share: The share of the training's steps that are averaged.
        device: The device that stores the mean.
    """

    def __init__(self, share: float, device: torch.device) -> None:
        super().__init__(device, multi_avg_fn=self._follow)
        self.share = share
        self.first = 0

    def on_fit_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.first = tail_start(self.share, int(trainer.estimated_stepping_batches))

    def _follow(self, means: list[Tensor], current: list[Tensor], step: Tensor) -> None:
        weight = 1 / max(1, int(step) - self.first + 1)
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, current, weight)
        else:  # the number of batches that a BatchNorm has seen
            torch._foreach_copy_(means, current)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if trainer.global_step > self.first:
            assert self._average_model is not None
            images = itertools.islice(trainer.datamodule.train_dataloader(), _BATCHES)  # type: ignore[attr-defined]
            with trainer.precision_plugin.forward_context():
                update_bn(images, self._average_model.module.network, task.device)  # type: ignore[arg-type]
        super().on_validation_epoch_start(trainer, task)
