"""Image classification, measured by accuracy."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from exprune.core.errors import SettingError
from exprune.lab.examples.images.averaging import TailMean
from exprune.lab.examples.images.cycles import cycles
from exprune.lab.examples.images.sharpness import sharp
from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.optimisation import checked_rate, decay_groups
from exprune.lab.tasks.sampling import draw
from exprune.lab.tasks.task import AccuracyTask
from exprune.lab.training.masks import masked_layers


class ImageTask(AccuracyTask):
    """Train and evaluate a network that maps (batch, 3, H, W) to one logit per class. OneCycle with label smoothing.

    Args:
        network: The network.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw`` (``momentum`` is its first beta).
        lr: The maximal learning rate.
        weight_decay: The weight decay.
        momentum: See ``optimizer``.
        label_smoothing: The label smoothing.
        warmup: The share of a cycle's steps in which the learning rate rises.
        classes: The number of classes.
        restart: The share of the training after which another cycle begins, or several ascending ones; None for one
            cycle.
        sharpness: For the last ``share`` of the epochs, minimise the loss at the worst weights within ``radius``, at
            twice the cost (`exprune.lab.examples.images.sharpness`); None for no such part.
        average: In the last ``share`` of the steps, use the constant rate ``lr`` and average the weights
            (`exprune.lab.examples.images.averaging`); None for no such part.
    """

    metric_name = "accuracy"
    unit = "image"
    monitor = "valid/accuracy"

    def __init__(
        self,
        network: nn.Module,
        optimizer: str,
        lr: float,
        weight_decay: float,
        momentum: float,
        label_smoothing: float,
        warmup: float,
        classes: int,
        restart: float | Sequence[float] | None = None,
        sharpness: Mapping[str, float] | None = None,
        average: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        if optimizer not in ("sgd", "adamw"):
            raise SettingError(f"model.task.optimizer={optimizer}: must be sgd or adamw")
        if average is not None:
            checked_rate(average["lr"], "average.lr")
            if not 0 < average["share"] < 1:
                raise SettingError(f"model.task.average.share={average['share']}: must be above 0 and below 1")
        cycles = 1 if average is None else 1 - average["share"]
        restarts = [] if restart is None else [restart] if isinstance(restart, int | float) else list(restart)
        if not all(0 < early < late for early, late in itertools.pairwise([*restarts, cycles])):
            raise SettingError(
                f"model.task.restart={restart}: a share of the training, above 0 and below {cycles:g}; or null"
            )
        if sharpness is not None and not (sharpness["radius"] > 0 and 0 < sharpness["share"] <= 1):
            raise SettingError(
                f"model.task.sharpness={dict(sharpness)}: a radius above 0 and a share above 0, at most 1; or null"
            )
        self.optimizer = optimizer
        self.lr, self.weight_decay, self.momentum = checked_rate(lr), weight_decay, momentum
        self.label_smoothing, self.warmup, self.restarts = label_smoothing, warmup, restarts
        self.sharpness = sharpness
        self.average = average
        self.metric = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images).float(), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self.network(images).float()
        check_finite(self, logits.amax(1), f"epoch {self.current_epoch + 1}, validation")
        self.metric.update(logits, labels)
        self.log(self.monitor, self.metric, prog_bar=True, batch_size=len(labels))

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> dict[str, Tensor | int]:
        """Per image: ``prediction`` (class) and ``target``; and the batch's other FLOPs."""
        images, labels = batch
        largest, prediction = self.network(images).max(1)
        return {
            "prediction": prediction,
            "target": labels,
            **self.other_flops(images),
            "not_finite": not_finite(largest),
        }

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output matters."""
        return self.network.head

    def sampled_loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's own predictions."""
        logits = self.network(batch[0]).float()
        check_finite(self, logits.amax(1), "calibration")
        return F.cross_entropy(logits, draw(logits, generator), reduction="sum")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.sharpness is not None and epoch >= (1 - self.sharpness["share"]) * (self.trainer.max_epochs or 0):
            optimizer_closure = sharp(self.network, optimizer_closure, self.sharpness["radius"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    @property
    def tail(self) -> Mapping[str, float] | None:
        """``average``; None under static pruning, because weights under changing masks should not be averaged."""
        return None if masked_layers(self.network) else self.average

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [] if self.tail is None else [TailMean(self.tail["share"], self.trainer.strategy.root_device)]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        groups = decay_groups(self.network, self.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999), fused=True)
        return cycles(self, optimizer, self.restarts, self.tail, pct_start=self.warmup, cycle_momentum=False)
