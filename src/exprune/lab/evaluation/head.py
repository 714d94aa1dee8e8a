"""Dominance prediction of a network's head, calibrated on the training split (docs/method.md, section 8)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning
import torch
from omegaconf import DictConfig

from exprune.core import Dominance, HeadRecorder, Site
from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData
from exprune.lab.evaluation.passes import run_pass
from exprune.lab.tasks.task import Task


def check_head(cfg: DictConfig, task: Task) -> None:
    """Raise a SettingError if ``head`` does not fit the task's head, before anything slow begins."""
    if cfg.head.tau is None:
        return
    if not hasattr(task, "head"):
        raise SettingError(
            f"head.tau={cfg.head.tau}: model={cfg.model.name} on data={cfg.data.name} is not judged by its largest "
            "logit; use head=none"
        )
    Dominance.check_tau(cfg.head.tau)
    HeadRecorder(task.head, cfg.head.stages)


def without_head(cfg: DictConfig, task: Task, sites: Sequence[Site]) -> list[Site]:
    """The sites without the head if ``head`` drops its logits, because its savings would count twice."""
    if cfg.head.tau is None:
        return list(sites)
    why = f"its logits are dropped, with head.tau={cfg.head.tau:g}"
    return [replace(site, reason=why, outcomes=()) if site.module is task.head else site for site in sites]


def dominance(cfg: DictConfig, trainer: lightning.Trainer, task: Task, data: SplitData) -> Dominance | None:
    """The calibrated `Dominance` of the trained task's head; None with ``head=none``.

    Raises:
        SettingError: If there are too few calibration inputs, or if the data has no training split.
    """
    if cfg.head.tau is None:
        return None
    recorder = HeadRecorder(task.head, cfg.head.stages)
    generator = torch.Generator().manual_seed(cfg.seed)
    run_pass(trainer, task, data.calibration_dataloader(cfg.head.inputs, generator), None, head=recorder)
    return Dominance(task.head, recorder.statistics(), cfg.head.tau)


def head_row(run: Dominance, inputs: int) -> dict[str, Any]:
    """What happened at the head in a pass; FLOPs are per input and of the head alone."""
    return {
        "tau": run.tau,
        "outputs": run.head.out_features,
        "rows": run.decided,
        "changed": run.changed,
        "stages": [{"n": n, "dropped": k} for n, k in zip(run.stages, run.dropped, strict=True)],
        "flops": {"dense": run.dense_flops / inputs, "pruned": run.pruned_flops / inputs, "saved": run.saved},
    }
