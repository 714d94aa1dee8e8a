"""What the tasks' optimisers share: the check of the rate, the groups of parameters, the schedule."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

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


def one_cycle(task: Task, optimizer: torch.optim.Optimizer, **options: Any) -> OptimizerLRSchedulerConfig:
    """The optimiser under OneCycle up to ``task.lr`` over the whole training."""
    steps = int(task.trainer.estimated_stepping_batches)
    return every_step(optimizer, OneCycleLR(optimizer, max_lr=task.lr, total_steps=steps, **options))


def every_step(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> OptimizerLRSchedulerConfig:
    """Both as Lightning wants them: the learning rate changes step by step."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
