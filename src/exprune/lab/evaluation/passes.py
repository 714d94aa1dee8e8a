"""One pass of a task over a split: what it gave per input, and what its batches cost."""

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor

from exprune.core import Dominance, ExPrune, HeadRecorder
from exprune.core.errors import SettingError
from exprune.lab.files import kept, write_whole
from exprune.lab.tasks.finite import not_finite_line
from exprune.lab.tasks.task import Task

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Pass:
    """What a pass gave, in the order of the split.

    Attributes:
        columns: what ``predict_step`` gave as tensors, one row per input; ``prediction`` and ``target`` among them.
        totals: what it gave as numbers, summed over the batches, such as FLOPs.
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
    trainer: lightning.Trainer,
    task: Task,
    loader: Any,
    run: ExPrune | None,
    file: Path | None = None,
    watch: Callable[[list[dict[str, Any]]], None] | None = None,
    head: HeadRecorder | Dominance | None = None,
) -> Pass:
    """Predict every input of ``loader``, under ``run`` and with what ``head`` does to the last layer, where given.

    A pass of over a minute keeps what it has in ``file``, and goes on from there when it is started again; one with a
    ``head`` does not. ``watch`` sees after each batch what all of them gave so far; it may raise to end the pass.

    Raises:
        SettingError: the network's output for some input is NaN or infinite.
    """
    progress = _Progress(run, None if head is not None else file, watch, head)
    task.before_pass()
    trainer.callbacks.append(progress)  # type: ignore[attr-defined]
    try:
        with run or contextlib.nullcontext(), head or contextlib.nullcontext():
            trainer.predict(task, _Rest(loader, len(progress.batches)), return_predictions=False)
    finally:
        trainer.callbacks.remove(progress)  # type: ignore[attr-defined]
    parts: dict[str, list[Tensor]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for batch in progress.batches:
        for name, value in batch.items():
            if isinstance(value, Tensor):
                parts[name].append(value)
            else:
                totals[name] += value
    if wrong := totals.pop("not_finite", 0):
        when = "dense pass" if run is None or run.heuristic is None else f"pass under {type(run.heuristic).__name__}"
        raise SettingError(not_finite_line(when, wrong, sum(map(len, parts["prediction"])), task.unit))
    columns = {name: torch.cat(values).numpy() for name, values in parts.items()}
    if "index" in columns:  # the task's batches are not in the order of the split
        order = columns.pop("index").argsort()
        columns = {name: values[order] for name, values in columns.items()}
    return Pass(columns, progress.seconds(), dict(totals))


class _Rest:
    """The batches of a loader but for the first so many."""

    def __init__(self, loader: Any, done: int) -> None:
        self.loader, self.done = loader, done

    def __len__(self) -> int:
        return len(self.loader) - self.done

    def __iter__(self) -> Iterator:
        return itertools.islice(iter(self.loader), self.done, None)


class _Progress(Callback):
    """Collects what the batches give, tells the run which rows are data, and keeps long passes on disk."""

    def __init__(
        self, run: ExPrune | None, file: Path | None, watch: Callable | None, head: HeadRecorder | Dominance | None
    ) -> None:
        self.run, self.file, self.watch, self.head = run, file, watch, head
        self.batches: list[dict[str, Any]] = []
        self.before = 0.0
        if file is not None:
            kept(file, self._go_on, "this pass begins anew")
        self.start = self.saved = time.perf_counter()

    def _go_on(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)
        batches, before = list(state["batches"]), float(state["seconds"])
        if len({frozenset(batch) for batch in batches}) > 1:
            raise ValueError("its batches differ in what they hold")
        if not all(isinstance(value, Tensor | int | float) for batch in batches for value in batch.values()):
            raise ValueError("its batches hold anything else than tensors and numbers")
        if self.run is not None:
            self.run.load_state_dict(state["run"])
        self.batches, self.before = batches, before

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def on_predict_batch_start(
        self, trainer: lightning.Trainer, task: Any, batch: Any, index: int, dataloader: int = 0
    ) -> None:
        watching = [one for one in (self.run, self.head) if one is not None]
        if watching and hasattr(task, "data_rows"):
            rows = task.data_rows(batch)
            for one in watching:
                one.rows = rows

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        task: Any,
        outputs: dict[str, Any],
        batch: Any,
        index: int,
        dataloader: int = 0,
    ) -> None:
        self.batches.append({k: v.cpu() if isinstance(v, Tensor) else v for k, v in outputs.items()})
        if self.watch is not None:
            self.watch(self.batches)
        if self.file is not None and time.perf_counter() - self.saved > SAVE_EVERY:
            state = {"batches": self.batches, "seconds": self.seconds()}
            state |= {} if self.run is None else {"run": self.run.state_dict()}
            write_whole(self.file, lambda partial: torch.save(state, partial))
            self.saved = time.perf_counter()
