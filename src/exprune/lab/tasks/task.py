"""What every task has: a network, and how it is trained, called and measured."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from exprune.api.paired_tests import PairedTest, accuracy_test
from exprune.lab.tasks.intervals import accuracy, weighted_accuracy


class Task(lightning.LightningModule):
    """Trains and evaluates a network; a subclass has the steps of Lightning, and of ours what is named here.

    ``predict_step`` gives per input ``prediction`` and ``target``, and counts of the whole batch, those of
    :meth:`other_flops` among them. ``data_rows(batch)``, where there is one, says which rows of a batch are no padding.

    Attributes:
        network: ``elementwise_flops(batch)`` says, where it is there, what its work beside the linear algebra costs.
        metric_name: what the metric is called in results.
        unit: what an input is called.
        monitor: what Lightning logs the validation metric as; the larger the better.
        score: the metric of (predictions, targets).
        weighted_metric: that of many resamples at once (:mod:`exprune.lab.tasks.intervals`).
        drop_test: the test of its drop (:mod:`exprune.api.paired_tests`) from dense predictions, pruned ones,
            targets and groups; a task may be without.
    """

    metric: Any
    lr: float
    metric_name: str
    unit: str
    monitor: str
    score: Callable[[Any, Any], float]
    weighted_metric: Callable[..., Any]
    drop_test: Callable[..., PairedTest]
    secondary: Callable[[dict[str, Any]], dict[str, float]]  # further metrics, where there are any
    data_rows: Callable[[Any], Tensor]

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output is predicted, of tasks where that is so."""
        raise AttributeError(f"{type(self).__name__} has no head")

    def before_pass(self) -> None:
        """Work out what ``predict_step`` must know of the network by running it, while nothing watches its calls."""

    def network_inputs(self, batch: Any) -> tuple[Any, ...]:
        """The arguments with which this task calls the network."""
        return (batch[0],)

    def other_flops(self, inputs: Any) -> dict[str, int]:
        """What the network says of its element-wise work on a batch, and of what the published figure leaves out."""
        said = ("elementwise_flops", "outside_paper_scope")
        counts = {name: getattr(self.network, name)(inputs) for name in said if hasattr(self.network, name)}
        return counts if "elementwise_flops" in counts else {**counts, "elementwise_unknown": 1}

    def sampled_loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's own predictions, or what has its squared gradients."""
        raise NotImplementedError


class AccuracyTask(Task):
    """A task whose metric is the share of its inputs that are predicted as their targets."""

    weighted_metric = staticmethod(weighted_accuracy)
    drop_test = staticmethod(accuracy_test)
    score = staticmethod(accuracy)
