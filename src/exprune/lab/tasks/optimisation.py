"""What the tasks' optimisers share: the check of the rate, the groups of parameters, the schedule."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from exprune.core.errors import SettingError
from exprune.lab.tasks.task import Task


def checked_rate(lr: float, name: str = "lr") -> float:
    """``lr``, where it is above 0; raises SettingError, which names ``model.task.<name>``, elsewhere."""
    if not 0 < lr < math.inf:
        raise SettingError(f"model.task.{name}={lr}: a learning rate above 0")
    return lr


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay is for weights: the scales of normalisations and all biases go without."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def tail_start(share: float, steps: int) -> int:
    """The first of the last steps of a training, of whose ``steps`` they are ``share``."""
    return round((1 - share) * steps)


def one_cycle(
    task: Task,
    optimizer: torch.optim.Optimizer,
    restarts: Sequence[float] = (),
    tail: Mapping[str, float] | None = None,
    **options: Any,
) -> OptimizerLRSchedulerConfig:
    """The optimiser under OneCycle up to ``task.lr`` over the whole training, step by step, as Lightning wants it.

    At each of ``restarts``, ascending shares of the training, another cycle begins (a warm restart). The last
    ``tail["share"]`` of the steps go at the constant rate ``tail["lr"]``.
    """
    steps = int(task.trainer.estimated_stepping_batches)
    last = steps if tail is None else tail_start(tail["share"], steps)
    ends = sorted({*(round(restart * steps) for restart in restarts), last} - {0})  # fewer of a short training
    phases: list[torch.optim.lr_scheduler.LRScheduler] = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=task.lr, total_steps=end - start, **options)
        for start, end in itertools.pairwise([0, *ends])
    ]
    if tail is not None:
        flat = torch.optim.lr_scheduler.LambdaLR
        phases.append(flat(optimizer, lambda _: tail["lr"] / optimizer.param_groups[0]["initial_lr"]))
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, phases, milestones=ends[: len(phases) - 1])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
