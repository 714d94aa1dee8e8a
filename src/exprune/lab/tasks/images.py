"""Image classification, measured by accuracy."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from exprune.core.errors import SettingError
from exprune.lab.intervals import accuracy, weighted_accuracy
from exprune.lab.tasks.optimisation import checked_rate, decay_groups, one_cycle
from exprune.lab.tasks.sampling import draw


class ImageTask(lightning.LightningModule):
    """Trains and evaluates a network that maps (batch, 3, H, W) to one logit per class.

    OneCycle, with label smoothing.

    Args:
        optimizer: ``sgd`` (Nesterov momentum) or ``adamw`` (``momentum`` is its first beta).
        lr: the maximal learning rate.
        warmup: the share of a cycle's steps in which the learning rate rises.
        restart: the share of the training after which a second cycle begins; None: there is one.
    """

    metric_name = "accuracy"
    unit = "image"
    monitor = "valid/accuracy"
    weighted_metric = staticmethod(weighted_accuracy)
    score = staticmethod(accuracy)

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
        restart: float | None = None,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adamw"):
            raise SettingError(f"model.task.optimizer={optimizer}: sgd or adamw")
        if restart is not None and not 0 < restart < 1:
            raise SettingError(f"model.task.restart={restart}: a share of the training, above 0 and below 1; or null")
        self.optimizer = optimizer
        self.network = network.to(memory_format=torch.channels_last)
        self.lr, self.weight_decay, self.momentum = checked_rate(lr), weight_decay, momentum
        self.label_smoothing, self.warmup, self.restart = label_smoothing, warmup, restart
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

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output is predicted."""
        return self.network.head

    def network_inputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        """The arguments with which this task calls the network."""
        return (batch[0],)

    def sampled_loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's own predictions."""
        logits = self.network(batch[0]).float()
        return F.cross_entropy(logits, draw(logits, generator), reduction="sum")

    def configure_optimizers(self) -> dict[str, Any]:
        groups = decay_groups(self.network, self.weight_decay)
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        return one_cycle(self, optimizer, self.restart, pct_start=self.warmup, cycle_momentum=False)
