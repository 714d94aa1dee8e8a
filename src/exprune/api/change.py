"""Measures of the difference between the outputs of a pruned model and of the dense model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exprune.api.batches import Batches, data_rows, labels_of
from exprune.core.errors import SettingError

Metric = Callable[[Any, Any], Tensor]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Change:
    """How far pruning changes the outputs, summarised over examples (for a language model, over tokens).

    Attributes:
        measure: ``"kl"`` is the divergence KL(dense || pruned) of the predicted distributions, in nats.
            ``"relative"`` is the squared error, divided by the mean squared output. ``"metric"`` is the fall of the
            user's metric, positive where pruning is worse.
        mean: The mean of the measure.
        error: The standard error of the mean.
        low: The lower end of the 95 % interval of the mean, by a paired bootstrap.
        high: The upper end of that interval.
        median: The median of the measure.
        most: The 99th percentile of the measure.
        largest: The maximum of the measure.
        same: The share of examples whose most likely class is unchanged; None if the outputs are not classes.
        examples: The number of examples.
    """

    measure: str
    mean: float
    error: float
    low: float
    high: float
    median: float
    most: float
    largest: float
    same: float | None
    examples: int

    def __str__(self) -> str:
        same = "" if self.same is None else f", {self.same:.1%} the same prediction"
        return (
            f"{self.measure} {self.mean:.4g} +- {self.error:.2g} (median {self.median:.3g}, 99 % {self.most:.3g}, "
            f"largest {self.largest:.3g}){same}, {self.examples} examples"
        )


def output_of(output: Any) -> Tensor:
    """The main tensor of a model's output: its ``logits``, the first of several outputs, or the output itself.

    Raises:
        SettingError: If this is not a floating-point tensor.
    """
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()), None)
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise SettingError(f"the model returns {type(output).__name__}, no floating-point tensor; give call= that does")
    return output


def measure_of(batches: Batches, model: Any) -> str:
    """``"kl"`` if the outputs are named logits or the batch has integer labels for them; otherwise ``"relative"``."""
    batch = next(iter(batches))
    with torch.no_grad():
        given = batches.call(model, batch)
    if hasattr(given, "logits") or (isinstance(given, Mapping) and "logits" in given):
        return "kl"
    out, labels = output_of(given), labels_of(batch)
    if labels is None or not labels.numel() or out.dim() < 2:
        return "relative"
    classes = out.shape[class_dim(out, labels)]
    return "kl" if classes > max(1, int(labels.max())) else "relative"


def class_dim(out: Tensor, labels: Tensor | None = None) -> int:
    """The dimension of the classes: 1 if the labels have the shape of a segmentation, otherwise the last."""
    return 1 if labels is not None and labels.dim() == out.dim() - 1 and labels.shape[1:] == out.shape[2:] else -1


def in_rows(out: Tensor, batch: Any) -> Tensor:
    """A batch's logits as (examples, classes), without padding."""
    rows = data_rows(batch)
    out = out.movedim(class_dim(out, labels_of(batch)), -1)
    if rows is not None and rows.shape == out.shape[:-1]:
        return out[rows]
    return out.flatten(0, -2)


def apart(measure: str, dense: Tensor, pruned: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    """The measure of each example of a batch, and whether its most likely class is the same (or None)."""
    if measure == "kl":
        return divergence(in_rows(dense, batch), in_rows(pruned, batch))
    rows = data_rows(batch)
    if rows is not None and rows.shape == dense.shape[: rows.dim()]:
        dense, pruned = dense[rows], pruned[rows]
    square = (dense - pruned).flatten(1).float().square().sum(1) if dense.dim() > 1 else (dense - pruned).float() ** 2
    scale = dense.flatten(1).float().square().sum(1) if dense.dim() > 1 else dense.float() ** 2
    return square / scale.mean().clamp(min=torch.finfo(torch.float32).tiny), None


def divergence(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """KL(dense || pruned) in nats for logits (examples, classes), and whether the most likely class is the same."""
    of_dense, of_pruned = dense.float().log_softmax(-1), pruned.float().log_softmax(-1)
    likely = of_dense.exp()
    # A class that is impossible in both contributes nothing.
    terms = torch.where(likely > 0, likely * (of_dense - of_pruned), 0)
    return terms.sum(-1).clamp(min=0), of_dense.argmax(-1) == of_pruned.argmax(-1)


def inputs_of(dense: Tensor, batch: Any, examples: int) -> Tensor:
    """For each example, the index of the input it comes from (for a token, of its text).

    Examples of the same input are not independent of each other.

    Args:
        dense: The output that the examples are taken from.
        batch: The batch that gave this output.
        examples: The number of examples.

    Returns:
        Integers of shape (examples,).
    """
    rows = data_rows(batch)
    if rows is not None and int(rows.sum()) == examples:
        return rows.nonzero()[:, 0].cpu()
    graph = getattr(batch, "batch", None)
    if isinstance(graph, Tensor) and len(graph) == examples:
        return graph.cpu()
    if hasattr(batch, "edge_index") and getattr(batch, "num_nodes", None) == examples:
        return torch.zeros(examples, dtype=torch.long)
    return torch.arange(len(dense)).repeat_interleave(examples // len(dense))


def summarised(measure: str, values: Tensor, same: Tensor | None, seed: int, inputs: Tensor | None = None) -> Change:
    """Summarise the change over all examples.

    Args:
        measure: The name of the measure.
        values: The measure of each example (examples,).
        same: Whether the most likely class of each example is the same (examples,), or None.
        seed: Seed of the bootstrap.
        inputs: The input that each example comes from (examples,). The examples of one input depend on each other, so
            the error and the interval are computed over inputs. None means that all examples are independent.
    """
    values = values.double().cpu()
    count = len(values)
    of = torch.arange(count) if inputs is None else inputs.unique(return_inverse=True)[1]
    sums, sizes = (torch.bincount(of, weights) for weights in (values, torch.ones_like(values)))
    mean, groups = float(values.mean()), len(sums)
    error = (
        float(((sums - mean * sizes) / sizes.mean()).square().sum() / (groups - 1) / groups) ** 0.5
        if groups > 1
        else math.inf
    )
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(_RESAMPLES, dtype=torch.float64)
    for k in range(_RESAMPLES):
        drawn = torch.randint(groups, (groups,), generator=generator)
        means[k] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    ordered = values.sort().values
    return Change(
        measure,
        mean,
        error,
        low,
        high,
        float(ordered[(count - 1) // 2]),
        float(ordered[min(count - 1, int(0.99 * count))]),
        float(ordered[-1]),
        None if same is None else float(same.double().mean()),
        count,
    )
