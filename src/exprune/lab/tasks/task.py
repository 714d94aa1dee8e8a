"""Base classes of tasks: a network, and how it is trained, called and measured."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from exprune.api.paired_tests import PairedTest, accuracy_test
from exprune.lab.tasks.intervals import accuracy, weighted_accuracy


class Task(lightning.LightningModule):
    """Train and evaluate a network. A subclass implements Lightning's steps and the attributes named here.

    ``predict_step`` returns ``prediction`` and ``target`` per input, and counts of the whole batch, including those of
    `other_flops`. ``data_rows(batch)``, if it exists, returns which rows of a batch are not padding.

    Attributes:
        network: The network. Its ``elementwise_flops(batch)``, if it exists, counts work besides the linear algebra.
        metric_name: The name of the metric in results.
        unit: The name of an input, in the singular.
        monitor: The name under which Lightning logs the validation metric; higher is better.
        score: The metric of (predictions, targets).
        weighted_metric: The metric of many resamples at once (`exprune.lab.tasks.intervals`).
        drop_test: The paired test of its drop (`exprune.api.paired_tests`), a function of dense predictions, pruned
            ones, targets and groups; optional.
    """

    metric: Any
    lr: float
    metric_name: str
    unit: str
    monitor: str
    score: Callable[[Any, Any], float]
    weighted_metric: Callable[..., Any]
    drop_test: Callable[..., PairedTest]
    secondary: Callable[[dict[str, Any]], dict[str, float]]  # further metrics, if there are any
    data_rows: Callable[[Any], Tensor]

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output matters, in tasks that have one."""
        raise AttributeError(f"{type(self).__name__} has no head")

    def before_pass(self) -> None:
        """Compute what ``predict_step`` must know of the network, before its calls are observed."""

    def network_inputs(self, batch: Any) -> tuple[Any, ...]:
        """The arguments that this task calls the network with."""
        return (batch[0],)

    def other_flops(self, inputs: Any) -> dict[str, int]:
        """The network's own count of element-wise FLOPs on a batch, and of FLOPs that the published figure excludes."""
        said = ("elementwise_flops", "outside_paper_scope")
        counts = {name: getattr(self.network, name)(inputs) for name in said if hasattr(self.network, name)}
        return counts if "elementwise_flops" in counts else {**counts, "elementwise_unknown": 1}

    def sampled_loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's predictions, or one with the same squared gradients."""
        raise NotImplementedError


class AccuracyTask(Task):
    """A task whose metric is the share of inputs that are predicted correctly."""

    weighted_metric = staticmethod(weighted_accuracy)
    drop_test = staticmethod(accuracy_test)
    score = staticmethod(accuracy)
