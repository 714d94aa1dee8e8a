"""One pass of a task over a split: predictions, targets, FLOPs outside of the layers, seconds."""

import contextlib
import time
from dataclasses import dataclass

import lightning
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from exprune.core import ExPrune


@dataclass(frozen=True)
class Pass:
    """What a pass gave; predictions and targets have one row per input, in the order of the split."""

    predictions: NDArray
    targets: NDArray
    elementwise_flops: int
    outside_paper_scope: int
    seconds: float


def run_pass(
    trainer: lightning.Trainer, task: lightning.LightningModule, loader: DataLoader, run: ExPrune | None
) -> Pass:
    """Predict every input of ``loader``, under ``run`` where it is given."""
    start = time.perf_counter()
    with run or contextlib.nullcontext():
        batches = trainer.predict(task, loader)
    seconds = time.perf_counter() - start
    return Pass(
        predictions=torch.cat([batch["prediction"] for batch in batches]).cpu().numpy(),
        targets=torch.cat([batch["target"] for batch in batches]).cpu().numpy(),
        elementwise_flops=sum(batch["elementwise_flops"] for batch in batches),
        outside_paper_scope=sum(batch.get("outside_paper_scope", 0) for batch in batches),
        seconds=seconds,
    )
