"""Binary graph classification, measured by ROC-AUC."""

import math
from collections.abc import Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc

from exprune.api.paired_tests import roc_auc_test
from exprune.core.errors import SettingError
from exprune.lab.tasks.finite import check_finite, not_finite
from exprune.lab.tasks.intervals import weighted_roc_auc
from exprune.lab.tasks.optimisation import checked_rate, one_cycle
from exprune.lab.tasks.task import Task


class GraphTask(Task):
    """Train and evaluate a network that maps a batch of graphs to one logit per graph.

    Training uses AdamW with OneCycle (docs/method.md, section 6).

    Args:
        network: The network.
        lr: The maximal learning rate.
        weight_decay: The weight decay.
    """

    metric_name = "roc_auc"
    unit = "graph"
    monitor = "valid/roc_auc"
    weighted_metric = staticmethod(weighted_roc_auc)
    drop_test = staticmethod(roc_auc_test)

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__(network)
        self.lr, self.weight_decay = checked_rate(lr), weight_decay
        self.metric = BinaryAUROC()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self.network(batch).float(), batch.y)
        self.log("train/loss", loss, batch_size=batch.num_graphs)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        logits = self.network(batch).view(-1).float()
        check_finite(self, logits, f"epoch {self.current_epoch + 1}, validation")
        self.metric.update(logits, batch.y.view(-1).int())
        self.log(self.monitor, self.metric, prog_bar=True, batch_size=batch.num_graphs)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Tensor | int]:
        """Per graph: ``prediction`` (logit) and ``target``; and the batch's element-wise FLOPs."""
        prediction = self.network(batch).view(-1).double()
        return {
            "prediction": prediction,
            "target": batch.y.view(-1).int(),
            **self.other_flops(batch),
            "not_finite": not_finite(prediction),
        }

    def check_labels(self, batches: Iterable[Batch], name: str) -> None:
        """Raise a SettingError if all graphs of ``batches`` have the same label, as ROC-AUC is then undefined."""
        labels = torch.cat([graphs.y.flatten() for graphs in getattr(batches, "dataset", batches)])
        if len(kinds := labels.unique()) < 2:
            raise SettingError(
                f"{name}: all of its {len(labels)} graphs have label {int(kinds)}, and ROC-AUC needs both; "
                "use more of them (data.limit), or other data"
            )

    def score(self, predictions: NDArray, targets: NDArray) -> float:
        """The metric of a whole split; NaN if it has only one label."""
        if targets.min() == targets.max():
            return math.nan
        return binary_auroc(torch.from_numpy(predictions), torch.from_numpy(targets)).item()

    def network_inputs(self, batch: Batch) -> tuple[Batch]:
        """The arguments that this task calls the network with."""
        return (batch,)

    def sampled_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's own predictions."""
        logits = self.network(batch).float()
        check_finite(self, logits.view(-1), "calibration")
        labels = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
        return one_cycle(self, optimizer)
