"""The curve of a network: what each setting of its heuristic saves on some inputs, and how far the metric drops."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from exprune.api.paired_tests import PairedTest
from exprune.core import ExPrune, Heuristic
from exprune.core.errors import SettingError
from exprune.lab.evaluation.measure import check_same_inputs, drop_points
from exprune.lab.evaluation.passes import Batches, Pass
from exprune.lab.evaluation.result import flops_per_input
from exprune.lab.evaluation.store import measured
from exprune.lab.evaluation.subject import Inputs, Subject

Setting = tuple[Heuristic | None, Any]  # a heuristic and its gain_ratio


@dataclass(frozen=True)
class Point:
    """A measured setting.

    Attributes:
        drop: The drop of the metric in points; infinite if the pass was ended early, because it would exceed the limit.
        saved: The share of the FLOPs; NaN if the pass was ended early.
        pruned: The pass; None if it was ended early.
        divergence: The mean KL(dense || pruned) of the predictions; None if the task does not measure it.
    """

    drop: float
    saved: float
    pruned: Pass | None = None
    divergence: float | None = None


class _TooFar(Exception):
    """The drop will exceed the limit."""


class Curve:
    """Measure settings on a subject's inputs, each paired with the dense pass, for targets, promises and searches.

    Args:
        subject: The trained network with its data and sites.
        inputs: The inputs to measure on.
        limit: A pass is ended early when its drop is certain to exceed this number of points.
    """

    def __init__(self, subject: Subject, inputs: Inputs, limit: float = math.inf) -> None:
        self.subject, self.inputs, self.limit = subject, inputs, limit
        self.dense = measured(subject, inputs)

    def at(self, setting: Setting) -> Point:
        """The point of one setting."""
        heuristic, gain_ratio = setting
        task, run = self.subject.task, ExPrune(self.subject.sites, heuristic, gain_ratio=gain_ratio)
        watch = None if self.limit == math.inf else self._watch
        try:
            pruned = measured(self.subject, self.inputs, run, gain_ratio, watch)
        except _TooFar:
            return Point(math.inf, math.nan)
        check_same_inputs(self.dense, pruned)
        saved = flops_per_input(task.unit, run.flops, self.dense, pruned).saved
        of = pruned.columns.get("divergence")
        mean = None if of is None else float(of.mean(dtype="float64"))
        return Point(drop_points(task, self.dense, pruned.predictions), saved, pruned, mean)

    def _watch(self, so_far: Batches) -> None:
        # The drop on the inputs so far may exceed the limit, but not by more than their share of all inputs allows.
        predictions = torch.cat([batch["prediction"] for batch in so_far]).numpy()
        done, inputs, seen = len(predictions), len(self.dense.targets), None
        if "index" in so_far[0]:  # the task's batches are not in the order of the split
            seen = torch.cat([batch["index"] for batch in so_far]).numpy()
        if done < inputs and drop_points(self.subject.task, self.dense, predictions, seen) > self.limit * inputs / done:
            raise _TooFar

    def test(self, point: Point) -> PairedTest:
        """The paired test of the metric's drop at a point.

        Raises:
            SettingError: If the metric has no such test.
        """
        task, dense, pruned = self.subject.task, self.dense, point.pruned
        assert pruned is not None
        if not hasattr(task, "drop_test"):
            raise SettingError(f"exprune.confidence: {task.metric_name} has no paired test (Task.drop_test); set null")
        return task.drop_test(dense.predictions, pruned.predictions, dense.targets, dense.columns.get("group"))
