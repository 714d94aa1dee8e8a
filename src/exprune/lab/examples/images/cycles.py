"""Learning rates of the image recipes: warm restarts, and a constant rate at the end."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, SequentialLR

from exprune.lab.tasks.optimisation import every_step
from exprune.lab.tasks.task import Task


def tail_start(share: float, steps: int) -> int:
    """The index of the first of the last steps, which are the given share of all steps."""
    return round((1 - share) * steps)


def cycles(
    task: Task,
    optimizer: torch.optim.Optimizer,
    restarts: Sequence[float] = (),
    tail: Mapping[str, float] | None = None,
    **options: Any,
) -> OptimizerLRSchedulerConfig:
    """One or several cycles of `one_cycle`.

    At each of ``restarts``, ascending shares of the training, a new cycle begins (a warm restart). The last
    ``tail["share"]`` of the steps have the constant rate ``tail["lr"]``.
    """
    steps = int(task.trainer.estimated_stepping_batches)
    last = steps if tail is None else tail_start(tail["share"], steps)
    ends = sorted({*(round(restart * steps) for restart in restarts), last} - {0})  # a short training may have fewer
    phases: list[LRScheduler] = [
        OneCycleLR(optimizer, max_lr=task.lr, total_steps=end - start, **options)
        for start, end in itertools.pairwise([0, *ends])
    ]
    if tail is not None:
        phases.append(LambdaLR(optimizer, lambda _: tail["lr"] / optimizer.param_groups[0]["initial_lr"]))
    return every_step(optimizer, SequentialLR(optimizer, phases, milestones=ends[: len(phases) - 1]))
