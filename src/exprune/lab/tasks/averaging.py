"""The mean of the weights at the ends of a training's cycles, in the way of Izmailov, Podoprikhin and others (2018)."""

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import update_bn


class CycleMean(Callback):
    """At the end of a cycle the network becomes the mean of those at this and the earlier ends, and goes on from there.

    The mean is of what is learned; the statistics of BatchNorms are then taken anew from the training split.

    Args:
        ends: when the cycles end, as ascending shares of the training.
    """

    def __init__(self, ends: Sequence[float]) -> None:
        self.ends = ends
        self.count = 0
        self.mean: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step not in {round(end * trainer.estimated_stepping_batches) for end in self.ends}:
            return
        weights = [p.detach() for p in task.network.parameters()]
        self.count += 1
        if self.count == 1:
            self.mean = [w.clone() for w in weights]
            return
        self.mean = [m.to(w).lerp(w, 1 / self.count) for m, w in zip(self.mean, weights, strict=True)]
        torch._foreach_copy_(weights, self.mean)
        with trainer.precision_plugin.forward_context():
            update_bn(trainer.datamodule.train_dataloader(), task.network, task.device)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean = state["count"], state["mean"]
