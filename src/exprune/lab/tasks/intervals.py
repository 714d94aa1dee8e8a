"""Paired bootstrap intervals of metrics over test examples."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exprune.core.errors import SettingError

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

# (predictions (n,), targets (n,), weights (resamples, n)) -> one value per resample
WeightedMetric = Callable[[Array, NDArray, Array], Array]

_CHUNK = 250  # resamples at a time, to limit memory


def weighted_roc_auc(predictions: Array, targets: NDArray, weights: Array) -> Array:
    """ROC-AUC of examples that count ``weights`` times. A tie counts one half. It is NaN if one class is missing.

    Examples are sorted once for all resamples. If every weight is 1, the value equals that of torchmetrics.
    """
    order = np.argsort(predictions, kind="stable")
    starts = np.flatnonzero(np.diff(predictions[order], prepend=-np.inf))
    positive = targets[order] > 0
    weights = weights[:, order]
    ups = np.add.reduceat(weights * positive, starts, axis=1)
    downs = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))


def accuracy(predictions: Array, targets: NDArray) -> float:
    """The share of examples whose predicted class is the target."""
    return float((predictions == targets).mean())


def weighted_accuracy(predictions: Array, targets: NDArray, weights: Array) -> Array:
    """The share of examples, each counted ``weights`` times, whose predicted class is the target."""
    return weights @ (predictions == targets) / weights.sum(axis=1)


@dataclass(frozen=True)
class Intervals:
    """95 % percentile intervals (low, high), in the metric's own unit."""

    dense: tuple[float, float]
    pruned: tuple[float, float]
    drop: tuple[float, float]


def paired_bootstrap(
    metric: WeightedMetric,
    dense: Array,
    pruned: Array,
    targets: NDArray,
    resamples: int,
    seed: int,
    groups: NDArray | None = None,
) -> Intervals:
    """Resample examples, the same ones for both predictions, and compute the metric of each resample.

    Resamples in which the metric is undefined (for example with a single class) are left out.

    Args:
        metric: The metric for many resamples at once.
        dense: Predictions of the dense network (n,).
        pruned: Predictions of the pruned network (n,).
        targets: Targets (n,).
        resamples: The number of resamples.
        seed: Seed of the random draws.
        groups: Which examples depend on each other, such as tokens of one text (n,). Whole groups are resampled. None
            means that all examples are independent.

    Returns:
        The intervals. ``drop`` is dense minus pruned; pairing removes the sampling noise that both share.

    Raises:
        SettingError: If there is no resample, or if the metric is undefined in all of them.
    """
    if resamples < 1:
        raise SettingError(f"bootstrap={resamples}: must be at least 1 resample")
    rng = np.random.default_rng(seed)
    units = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1
    chunk = _CHUNK if groups is None else max(1, _CHUNK * 10_000 // len(targets))
    values: list[Array] = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)
        weights = weights if groups is None else weights[:, units]
        values.append(np.stack([metric(dense, targets, weights), metric(pruned, targets, weights)]))
    of_dense, of_pruned = np.concatenate(values, axis=1)
    defined = np.isfinite(of_dense) & np.isfinite(of_pruned)
    if not defined.any():
        raise SettingError(
            f"bootstrap={resamples}: the metric of {len(targets)} inputs is undefined in every resample; "
            "use more inputs or more resamples"
        )
    if not defined.all():
        log.info("%d of %d resamples have no such metric and are left out", (~defined).sum(), resamples)
        of_dense, of_pruned = of_dense[defined], of_pruned[defined]
    return Intervals(_interval(of_dense), _interval(of_pruned), _interval(of_dense - of_pruned))


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
