"""Image classification, measured by accuracy."""

from typing import Any

import lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from exprune.core.errors import SettingError
from exprune.lab.intervals import weighted_accuracy


class ImageTask(lightning.LightningModule):
    """Trains and evaluates a network that maps (batch, 3, H, W) to one logit per class.

    OneCycle, with label smoothing.

    Args:
        optimizer: ``sgd`` (Nesterov momentum) or ``adamw`` (``momentum`` is its first beta).
        lr: the maximal learning rate.
        warmup: the share of the steps in which the learning rate rises.
    """

    metric_name = "accuracy"
    unit = "image"
    monitor = "valid/accuracy"
    weighted_metric = staticmethod(weighted_accuracy)

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
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise SettingError(f"model.task.lr={lr}: a learning rate above 0")
        if optimizer not in ("sgd", "adamw"):
            raise SettingError(f"model.task.optimizer={optimizer}: sgd or adamw")
        self.optimizer = optimizer
        self.network = network.to(memory_format=torch.channels_last)
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.label_smoothing, self.warmup = label_smoothing, warmup
        self.metric = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images).float(), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.metric.update(self.network(images).float(), labels)
        self.log(self.monitor, self.metric, prog_bar=True, batch_size=len(labels))

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> dict[str, Tensor | int]:
        """Per image: ``prediction`` (class) and ``target``; and the batch's other FLOPs."""
        images, labels = batch
        return {
            "prediction": self.network(images).argmax(1),
            "target": labels,
            "elementwise_flops": self.network.elementwise_flops(images),
            "outside_paper_scope": self.network.outside_paper_scope(images),
        }

    def score(self, predictions: NDArray, targets: NDArray) -> float:
        """The metric of a whole split."""
        return float((predictions == targets).mean())

    def network_inputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        """The arguments with which this task calls the network."""
        return (batch[0],)

    def configure_optimizers(self) -> dict[str, Any]:
        # Weight decay is for weights: BatchNorm's scales and all biases go without.
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=self.trainer.estimated_stepping_batches,
            pct_start=self.warmup,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
