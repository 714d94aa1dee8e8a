"""One measurement: a network densely and under ExPrune on a split."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from exprune.api.change import summarised
from exprune.core import Dominance, ExPrune, Heuristic, InputRule
from exprune.core.errors import SettingError
from exprune.lab.evaluation.head import head_row
from exprune.lab.evaluation.passes import Pass
from exprune.lab.evaluation.result import Metric, Result, check_defined, flops_per_input, site_rows
from exprune.lab.evaluation.store import measured
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.fingerprint import versions
from exprune.lab.tasks.intervals import paired_bootstrap
from exprune.lab.tasks.task import Task
from exprune.lab.training.masks import sparsity


def measure(
    subject: Subject,
    heuristic: Heuristic | None,
    gain_ratio: Any,
    split: str,
    command: str,
    target: dict[str, Any] | None = None,
    head: Dominance | None = None,
) -> tuple[Result, pd.DataFrame]:
    """Measure a heuristic, and optionally a pruned head, on a split.

    Args:
        subject: The trained network with its data and sites.
        heuristic: The heuristic; None prunes nothing.
        gain_ratio: Its gain ratio; see `ExPrune`.
        split: ``"test"`` or ``"valid"``.
        command: The command line, for the record.
        target: The target that the heuristic's setting was found for, and what it reached on the validation split.
        head: Drops logits of the head.

    Returns:
        The result, and a table with the target and both predictions of every input.

    Raises:
        SettingError: If a value of the result is NaN or infinite.
    """
    cfg, task = subject.cfg, subject.task
    run = ExPrune(subject.sites, heuristic, gain_ratio=gain_ratio)
    inputs = subject.inputs(split)
    dense = None if heuristic is None and head is None else measured(subject, inputs)
    pruned = measured(subject, inputs, run, gain_ratio, head=head)
    dense = dense or pruned
    result = Result(
        model=cfg.model.name,
        data=cfg.data.name,
        split=split,
        inputs=len(dense.targets),
        static=cfg.static.name,
        sparsity=sparsity(task.network),
        seed=cfg.seed,
        checkpoint=subject.checkpoint,
        heuristic="none" if heuristic is None else type(heuristic).__name__,
        tau=None if heuristic is None else heuristic.tau,
        n=None if heuristic is None else _terms_before_test(heuristic),
        stages=None if heuristic is None else list(heuristic.stages),
        lam=getattr(heuristic, "lam", None),
        order=cfg.exprune.get("order"),
        predict=None if heuristic is None else heuristic.predicts,
        finite_population=getattr(heuristic, "finite_population", None) or None,
        scope=cfg.exprune.get("scope"),
        target=target,
        gain_ratio=gain_ratio,
        site_selection=plain(cfg.exprune.sites),
        metric=compare(task, dense, pruned, cfg.bootstrap, cfg.seed),
        flops=flops_per_input(task.unit, run.flops, dense, pruned),
        sites=site_rows(run),
        seconds={"dense": dense.seconds, "pruned": None if dense is pruned else pruned.seconds},
        versions=versions(),
        command=command,
        head=None if head is None else head_row(head, len(dense.targets)),
        metrics={} if head is not None else _secondary(task, dense, pruned),  # secondary metrics need all logits
        divergence=divergence_of(dense, pruned, cfg.seed),
    )
    check_defined(result)
    examples = pd.DataFrame({"target": dense.targets, "dense": dense.predictions, "pruned": pruned.predictions})
    if "group" in dense.columns:
        examples["group"] = dense.columns["group"]
    return result, examples


def _terms_before_test(heuristic: Heuristic) -> int | None:
    """The number of terms before the test; None if there are several tests, or if it depends on the input."""
    return None if len(heuristic.stages) > 1 or isinstance(heuristic, InputRule) else heuristic.stages[0]


def drop_points(task: Task, dense: Pass, predictions: NDArray, which: NDArray | None = None) -> float:
    """The drop of the metric in points, over the inputs that are predicted.

    ``which`` are the positions of these inputs in the dense pass; None means its first ones.
    """
    of = slice(len(predictions)) if which is None else which
    targets, before = dense.targets[of], dense.predictions[of]
    return 100 * (task.score(before, targets) - task.score(predictions, targets))


def check_same_inputs(dense: Pass, pruned: Pass) -> None:
    """Check that two passes were over the same inputs in the same order.

    Raises:
        SettingError: If they were not, for example because files were mixed up.
    """
    if not np.array_equal(dense.targets, pruned.targets, equal_nan=dense.targets.dtype.kind == "f"):
        raise SettingError(
            f"the dense and the pruned pass are of different inputs ({len(dense.targets)} and {len(pruned.targets)}); "
            "delete the folder passes in paths.cache_dir, where passes are cached"
        )


def compare(task: Task, dense: Pass, pruned: Pass, resamples: int, seed: int) -> Metric:
    """The metric of two passes over the same inputs, with its paired bootstrap.

    Raises:
        SettingError: If the inputs are not the same.
    """
    check_same_inputs(dense, pruned)
    of_dense, of_pruned = (task.score(one.predictions, one.targets) for one in (dense, pruned))
    groups = dense.columns.get("group")
    both = dense.predictions, pruned.predictions
    intervals = paired_bootstrap(task.weighted_metric, *both, dense.targets, resamples, seed, groups)
    low, high = intervals.drop
    return Metric(
        name=task.metric_name,
        dense=of_dense,
        pruned=of_pruned,
        drop=100 * (of_dense - of_pruned),
        interval=(100 * low, 100 * high),
        dense_interval=intervals.dense,
        pruned_interval=intervals.pruned,
    )


def divergence_of(dense: Pass, pruned: Pass, seed: int) -> dict[str, Any] | None:
    """A summary of KL(dense || pruned) of the predictions; None if the task does not measure it."""
    if "divergence" not in pruned.columns:
        return None
    same = torch.from_numpy(dense.predictions == pruned.predictions)
    groups = pruned.columns.get("group")
    of = None if groups is None else torch.from_numpy(groups)
    change = asdict(summarised("kl", torch.from_numpy(pruned.columns["divergence"]), same, seed, of))
    return {name: value if value != math.inf else None for name, value in change.items() if name != "measure"}


def _secondary(task: Task, dense: Pass, pruned: Pass) -> dict[str, dict[str, float]]:
    if not hasattr(task, "secondary"):
        return {}
    of_dense, of_pruned = task.secondary(dense.columns), task.secondary(pruned.columns)
    return {name: {"dense": of_dense[name], "pruned": of_pruned[name]} for name in of_dense}
