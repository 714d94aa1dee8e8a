"""Next-token prediction, measured by accuracy."""

from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from transformers import OPTForCausalLM

from exprune.core.errors import SettingError
from exprune.lab.data.tokens import NO_TARGET, TokenBatch
from exprune.lab.intervals import weighted_accuracy
from exprune.lab.models.opt import fc1_flops, logits_of, opt_flops, zeros_of_fc2


class NextTokenTask(lightning.LightningModule):
    """Trains and evaluates an OPT on the token after each token. AdamW under OneCycle.

    The tokens of one text depend on each other, so intervals resample texts.

    Args:
        lr: the maximal learning rate.
        warmup: the share of the steps in which the learning rate rises.
    """

    metric_name = "next_token_accuracy"
    unit = "token"
    monitor = "valid/accuracy"
    weighted_metric = staticmethod(weighted_accuracy)

    def __init__(self, network: OPTForCausalLM, lr: float, weight_decay: float, warmup: float) -> None:
        super().__init__()
        if lr <= 0:
            raise SettingError(f"model.task.lr={lr}: a learning rate above 0")
        self.network = network
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.metric = MulticlassAccuracy(network.config.vocab_size, average="micro", ignore_index=NO_TARGET)

    def _logits(self, batch: TokenBatch) -> Tensor:
        return logits_of(self.network, batch.input_ids, batch.attention_mask)

    def training_step(self, batch: TokenBatch, index: int) -> Tensor:
        loss = F.cross_entropy(self._logits(batch).float().flatten(0, 1), batch.targets.flatten())
        self.log("train/loss", loss, batch_size=len(batch.groups))
        return loss

    def validation_step(self, batch: TokenBatch, index: int) -> None:
        self.metric.update(self._logits(batch).argmax(-1).flatten(), batch.targets.flatten())
        self.log(self.monitor, self.metric, prog_bar=True, batch_size=len(batch.groups))

    def predict_step(self, batch: TokenBatch, index: int) -> dict[str, Tensor | int]:
        """Per token: ``prediction``, ``target``, ``loss`` and ``group`` (its text); and the batch's FLOPs."""
        with zeros_of_fc2(self.network, batch.attention_mask.bool()) as zeros:
            logits = self._logits(batch)
        real = batch.targets != NO_TARGET
        lengths = batch.attention_mask.sum(1).tolist()
        total = opt_flops(self.network.config, lengths)
        return {
            "prediction": logits.argmax(-1)[real],
            "target": batch.targets[real],
            "loss": F.cross_entropy(logits[real].float(), batch.targets[real], reduction="none"),
            "group": batch.groups[:, None].expand_as(real)[real],
            "elementwise_flops": 0,
            "model_flops": total,
            "outside_paper_scope": total - fc1_flops(self.network.config, lengths),
            "zero_skipping": int(sum(zeros)),
        }

    def score(self, predictions: NDArray, targets: NDArray) -> float:
        """The metric of a whole split."""
        return float((predictions == targets).mean())

    def secondary(self, columns: dict[str, NDArray]) -> dict[str, float]:
        """Further metrics of a whole split, from what :meth:`predict_step` gave beside the predictions."""
        return {"perplexity": float(np.exp(columns["loss"].mean()))}

    def network_inputs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The arguments with which this task calls the network."""
        return batch.input_ids, batch.attention_mask

    def data_rows(self, batch: TokenBatch) -> Tensor:
        """Which of the tokens are no padding: what an :class:`~exprune.core.ExPrune` counts."""
        return batch.attention_mask.bool()

    def configure_optimizers(self) -> dict[str, Any]:
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=self.trainer.estimated_stepping_batches,
            pct_start=self.warmup,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
