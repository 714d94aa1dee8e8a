"""A pass of a task over a split: its outputs per input and the costs of its batches, kept in a file."""

import contextlib
import itertools
import logging
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
from exprune.files import CannotWriteError, kept, write_whole
from exprune.lab.fingerprint import programs
from exprune.lab.tasks.finite import not_finite_line
from exprune.lab.tasks.task import Task

log = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds

Batches = list[dict[str, Any]]  # the results of ``predict_step``

_OF_HEAD = ("decided", "changed", "dropped", "dense_flops", "pruned_flops")  # the counts of Dominance


@dataclass(frozen=True)
class Pass:
    """The results of a pass, in the order of the split.

    Attributes:
        columns: The tensors that ``predict_step`` returned, one row per input, with ``prediction`` and ``target``.
        seconds: The time that the pass took.
        totals: The numbers that it returned, such as FLOPs, summed over the batches.
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
    watch: Callable[[Batches], None] | None = None,
    head: HeadRecorder | Dominance | None = None,
) -> Pass:
    """Predict every input of a loader.

    The results are kept in ``file``: at the end of the pass, every minute until then, and when ``watch`` ends it. An
    existing file is read, with the counts of ``run`` and ``head``, and the pass continues from there.

    Args:
        trainer: Lightning's trainer.
        task: The task.
        loader: The batches.
        run: The context to run the network in, if any.
        file: Where to keep the results; None keeps nothing.
        watch: Called with all results so far after each batch, also for those read from the file. It may raise an
            exception to end the pass.
        head: A context for the head, if any.

    Returns:
        The results.

    Raises:
        SettingError: If the network's output for some input is NaN or infinite.
    """
    progress = _Progress(run, file, watch, head)
    if not progress.ended:
        task.before_pass()
        trainer.callbacks.append(progress)  # type: ignore[attr-defined]
        try:
            with run or contextlib.nullcontext(), head or contextlib.nullcontext():
                trainer.predict(task, _Rest(loader, len(progress.batches)), return_predictions=False)
        finally:
            trainer.callbacks.remove(progress)  # type: ignore[attr-defined]
        progress.end()
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
    return Pass(columns, progress.before, dict(totals))


class _Rest:
    """The batches of a loader without the first ``done``."""

    def __init__(self, loader: Any, done: int) -> None:
        self.loader, self.done = loader, done

    def __len__(self) -> int:
        return len(self.loader) - self.done

    def __iter__(self) -> Iterator:
        return itertools.islice(iter(self.loader), self.done, None)


class _Progress(Callback):
    """Collect the results of the batches, tell the run which rows are data, and keep results and counts in a file."""

    def __init__(
        self, run: ExPrune | None, file: Path | None, watch: Callable | None, head: HeadRecorder | Dominance | None
    ) -> None:
        self.run, self.file, self.watch, self.head = run, file, watch, head
        self.batches: Batches = []
        self.before, self.ended = 0.0, False
        self._counted = _OF_HEAD if isinstance(head, Dominance) else ()
        if file is not None:
            kept(file, self._go_on, "this pass begins anew")
        self.start = time.perf_counter()
        if watch is not None:
            for count in range(len(self.batches)):
                watch(self.batches[: count + 1])

    def _go_on(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)
        if state["programs"] != programs():
            raise ValueError("measured by other versions of exprune or of the packages it uses")
        batches, before, ended = list(state["batches"]), float(state["seconds"]), bool(state["ended"])
        if len({frozenset(batch) for batch in batches}) > 1:
            raise ValueError("its batches hold different values")
        if not all(isinstance(value, Tensor | int | float) for batch in batches for value in batch.values()):
            raise ValueError("its batches hold something other than tensors and numbers")
        of_head = {name: state["head"][name] for name in self._counted}
        if self.run is not None:
            self.run.load_state_dict(state["run"])
        for name, count in of_head.items():
            setattr(self.head, name, count)
        self.batches, self.before, self.ended = batches, before, ended

    def on_predict_batch_start(
        self, trainer: lightning.Trainer, task: Any, batch: Any, index: int, dataloader: int = 0
    ) -> None:
        run = self.run
        prunes = run is not None and run.heuristic is not None and self.head is None
        if run is not None and prunes and hasattr(task, "keep_reference"):
            with run.paused(), trainer.precision_plugin.forward_context():
                task.keep_reference(batch)
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
        # Copies, because saving a slice would save the whole tensor.
        self.batches.append({k: v.cpu().clone() if isinstance(v, Tensor) else v for k, v in outputs.items()})
        try:
            if self.watch is not None:
                self.watch(self.batches)
        except BaseException:
            self.save()
            raise
        if time.perf_counter() - self.start > SAVE_EVERY:
            self.save()

    def end(self) -> None:
        """Mark the pass as complete, and save it."""
        self.ended = True
        self.save()

    def save(self) -> None:
        now = time.perf_counter()
        self.before, self.start = self.before + now - self.start, now
        if self.file is None:
            return
        state: dict[str, Any] = {"programs": programs(), "batches": self.batches}
        state |= {"seconds": self.before, "ended": self.ended}
        state |= {"run": None if self.run is None else self.run.state_dict()}
        state |= {"head": {name: getattr(self.head, name) for name in self._counted}}
        try:
            write_whole(self.file, lambda partial: torch.save(state, partial))
        except CannotWriteError as error:
            log.warning("%s; this pass is not kept", error)
            self.file = None
