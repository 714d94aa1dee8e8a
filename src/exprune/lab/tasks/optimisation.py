"""Shared parts of the tasks' optimisers: the check of the learning rate, parameter groups, and schedules."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from exprune.core.errors import SettingError
from exprune.lab.tasks.task import Task


def checked_rate(lr: float, name: str = "lr") -> float:
    """``lr`` if it is above 0; otherwise raises a SettingError that names ``model.task.<name>``."""
    if not 0 < lr < math.inf:
        raise SettingError(f"model.task.{name}={lr}: must be a learning rate above 0")
    return lr


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay for weights only, not for biases and the scales of normalisations."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def one_cycle(task: Task, optimizer: torch.optim.Optimizer, **options: Any) -> OptimizerLRSchedulerConfig:
    """The optimiser with a OneCycle schedule up to ``task.lr`` over the whole training."""
    steps = int(task.trainer.estimated_stepping_batches)
    return every_step(optimizer, OneCycleLR(optimizer, max_lr=task.lr, total_steps=steps, **options))


def every_step(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> OptimizerLRSchedulerConfig:
    """The configuration of Lightning for a learning rate that changes at every step."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
