"""One pass of a task over a split: what it gave per input, and what its batches cost."""

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from exprune.core import ExPrune


@dataclass(frozen=True)
class Pass:
    """What a pass gave, in the order of the split.

    Attributes:
        columns: what ``predict_step`` gave as tensors, one row per input; ``prediction`` and ``target`` among them.
        totals: what it gave as numbers, summed over the batches; ``elementwise_flops`` among them.
    """

    columns: dict[str, NDArray]
    seconds: float
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def predictions(self) -> NDArray:
        return self.columns["prediction"]

    @property
    def targets(self) -> NDArray:
        return self.columns["target"]


def run_pass(
    trainer: lightning.Trainer, task: lightning.LightningModule, loader: DataLoader, run: ExPrune | None
) -> Pass:
    """Predict every input of ``loader``, under ``run`` where it is given."""
    rows = _NameRows(run)
    trainer.callbacks.append(rows)
    start = time.perf_counter()
    try:
        with run or contextlib.nullcontext():
            batches = trainer.predict(task, loader)
    finally:
        trainer.callbacks.remove(rows)
    seconds = time.perf_counter() - start
    parts: dict[str, list[Tensor]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for batch in batches:
        for name, value in batch.items():
            if isinstance(value, Tensor):
                parts[name].append(value)
            else:
                totals[name] += value
    columns = {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}
    if "index" in columns:  # the task's batches are not in the order of the split
        order = columns.pop("index").argsort()
        columns = {name: values[order] for name, values in columns.items()}
    return Pass(columns, seconds, dict(totals))


class _NameRows(Callback):
    """Tells the run which rows of a batch are data, where the task has padding."""

    def __init__(self, run: ExPrune | None) -> None:
        self.run = run

    def on_predict_batch_start(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, batch: Any, index: int, dataloader: int = 0
    ) -> None:
        if self.run is not None and hasattr(task, "data_rows"):
            self.run.rows = task.data_rows(batch)
