"""What every task has: a network, and how it is trained, called and measured."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn


class Task(lightning.LightningModule):
    """Trains and evaluates a network; a subclass has the steps of Lightning, and of ours what is named here.

    ``predict_step`` gives per input ``prediction`` and ``target``, and counts of the whole batch, of which
    ``elementwise_flops`` must be there. ``data_rows(batch)``, where there is one, says which rows of a batch are no
    padding.

    Attributes:
        network: with ``elementwise_flops(batch)``, where the task asks for it.
        metric_name: what the metric is called in results.
        unit: what an input is called.
        monitor: what Lightning logs the validation metric as; the larger the better.
        score: the metric of (predictions, targets).
        weighted_metric: that of many resamples at once (:mod:`exprune.lab.tasks.intervals`).
    """

    network: Any
    metric: Any
    lr: float
    metric_name: str
    unit: str
    monitor: str
    score: Callable[[Any, Any], float]
    weighted_metric: Callable[..., Any]
    secondary: Callable[[dict[str, Any]], dict[str, float]]  # further metrics, where there are any
    data_rows: Callable[[Any], Tensor]

    @property
    def head(self) -> nn.Linear:
        """The layer of which only the largest output is predicted, of tasks where that is so."""
        raise AttributeError(f"{type(self).__name__} has no head")

    def network_inputs(self, batch: Any) -> tuple[Any, ...]:
        """The arguments with which this task calls the network."""
        raise NotImplementedError

    def sampled_loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The summed loss of labels drawn from the network's own predictions."""
        raise NotImplementedError
