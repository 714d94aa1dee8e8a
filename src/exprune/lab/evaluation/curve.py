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

Setting = tuple[Heuristic | None, Any]  # with its gain_ratio


@dataclass(frozen=True)
class Point:
    """A setting as it was measured.

    Attributes:
        drop: of the metric, in points; infinite where the pass was ended early, bound to exceed the limit.
        saved: the share of the FLOPs; then NaN.
        divergence: the mean KL(dense || pruned) of the predictions; None of a task that does not measure it.
        pruned: what the pass gave of each input; then None.
    """

    drop: float
    saved: float
    pruned: Pass | None = None
    divergence: float | None = None


class _TooFar(Exception):
    """The drop is bound to exceed the limit."""


class Curve:
    """What settings do on a subject's inputs, each in a pair with the dense pass. Targets, promises and searches pick.

    Args:
        limit: points of drop beyond which a pass is not worth its end.
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
        # A part of the inputs may fall further short than all of them, but not by more than its share allows.
        predictions = torch.cat([batch["prediction"] for batch in so_far]).numpy()
        done, inputs = len(predictions), len(self.dense.targets)
        if done < inputs and drop_points(self.subject.task, self.dense, predictions) > self.limit * inputs / done:
            raise _TooFar

    def test(self, point: Point) -> PairedTest:
        """The test of the metric's drop at a point.

        Raises:
            SettingError: the metric has none.
        """
        task, dense, pruned = self.subject.task, self.dense, point.pruned
        assert pruned is not None
        if not hasattr(task, "drop_test"):
            raise SettingError(f"exprune.confidence: {task.metric_name} has no paired test (Task.drop_test); null")
        return task.drop_test(dense.predictions, pruned.predictions, dense.targets, dense.columns.get("group"))
