"""Compares the weighted metric with torchmetrics, and the bootstrap with a slow one and with theory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from exprune.core.errors import SettingError
from exprune.lab.tasks.intervals import paired_bootstrap, weighted_roc_auc


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_weighted_roc_auc_is_that_of_repeated_examples(rows: list[tuple[int, bool, int]]) -> None:
    """A weight of k counts an example k times; ties count half."""
    predictions, targets, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    repeats = weights.astype(int)
    repeated, labels = np.repeat(predictions, repeats), np.repeat(targets, repeats)
    value = weighted_roc_auc(predictions, targets, weights[None])[0]
    if 0 < labels.sum() < len(labels):
        scaled = torch.from_numpy(repeated / 10)  # torchmetrics takes values outside [0, 1] for logits
        assert value == pytest.approx(binary_auroc(scaled, torch.from_numpy(labels).int()).item(), abs=1e-6)
    else:
        assert np.isnan(value)


def _mean(predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (predictions == targets) / weights.sum(axis=1)


def test_bootstrap_covers_as_the_normal_interval() -> None:
    """For an accuracy over 2,000 examples the percentile interval is close to the normal approximation."""
    rng = np.random.default_rng(0)
    targets = np.ones(2000)
    dense, pruned = (rng.random(2000) < 0.9).astype(float), (rng.random(2000) < 0.88).astype(float)
    intervals = paired_bootstrap(_mean, dense, pruned, targets, 4000, seed=1)
    difference = dense - pruned
    half = 1.96 * difference.std() / np.sqrt(2000)
    assert intervals.drop == pytest.approx((difference.mean() - half, difference.mean() + half), abs=1.5e-3)
    half = 1.96 * dense.std() / np.sqrt(2000)
    assert intervals.dense == pytest.approx((dense.mean() - half, dense.mean() + half), abs=1.5e-3)


def test_bootstrap_is_paired_and_repeatable() -> None:
    """Equal predictions give a drop of exactly 0; the seed determines the draw, also across chunks."""
    rng = np.random.default_rng(0)
    targets = (rng.random(50) < 0.3).astype(int)
    scores, others = rng.random(50), rng.random(50)
    assert paired_bootstrap(weighted_roc_auc, scores, scores, targets, 700, seed=3).drop == (0.0, 0.0)
    first, second = (paired_bootstrap(weighted_roc_auc, scores, others, targets, 700, seed=3) for _ in range(2))
    assert first == second
    assert first.drop[0] < first.drop[1]


def test_no_resample_is_refused() -> None:
    with pytest.raises(SettingError, match="bootstrap=0"):
        paired_bootstrap(weighted_roc_auc, np.zeros(2), np.zeros(2), np.array([0, 1]), 0, seed=0)
