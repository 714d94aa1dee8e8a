"""Compares the paired tests of a drop with brute force, simulation and published data."""

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import xlogy
from sklearn.metrics import roc_auc_score

from exprune.api.paired_tests import ExactAccuracy, GroupedMean, accuracy_test, roc_auc_test
from exprune.lab.tasks.intervals import paired_bootstrap, weighted_roc_auc


def tail(lost: int, mended: int, inputs: int, drop: float, rate: float) -> float:
    """Return P(an outcome is at least as good as the observed one), summed over every outcome of the trinomial."""
    probability = [rate + drop, rate, max(0.0, 1 - 2 * rate - drop)]
    outcomes = [(a, b) for a, b in itertools.product(range(inputs + 1), repeat=2) if a + b <= inputs]
    of = stats.multinomial.pmf([(a, b, inputs - a - b) for a, b in outcomes], inputs, probability)
    seen = score(lost, mended, inputs, drop)
    return float(sum(p for p, both in zip(of, outcomes, strict=True) if score(*both, inputs, drop) <= seen + 1e-9))


@lru_cache(None)
def score(lost: int, mended: int, inputs: int, drop: float) -> float:
    """Return Tango's p-value, with the restricted maximum of the likelihood found by search."""

    def unlikely(rate: float) -> float:
        likelihood = xlogy(mended, rate) + xlogy(lost, rate + drop)
        return -(likelihood + xlogy(inputs - lost - mended, 1 - 2 * rate - drop))

    rate = optimize.minimize_scalar(unlikely, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-10}).x
    return (lost - mended - inputs * drop) / math.sqrt(inputs * (2 * rate + drop - drop**2))


@pytest.mark.parametrize(("lost", "mended", "inputs", "drop"), [(2, 1, 18, 0.3), (0, 0, 15, 0.2), (5, 6, 20, 0.1)])
def test_exact_p_value_is_the_largest_tail(lost: int, mended: int, inputs: int, drop: float) -> None:
    p = ExactAccuracy(lost, mended, inputs).p_value(drop, error=0.05)
    highest = stats.binomtest(mended, inputs).proportion_ci(1 - 2 * 0.001, "exact").high  # one-sided, 0.1 %
    largest = max(tail(lost, mended, inputs, drop, rate) for rate in np.linspace(0, min(highest, (1 - drop) / 2), 200))
    assert p == pytest.approx(largest + 0.001, rel=2e-3)


@pytest.mark.parametrize(("rate", "drop"), [(0.0, 0.01), (0.005, 0.01), (0.03, 0.01), (0.08, 0.02)])
def test_exact_test_keeps_its_error(rate: float, drop: float) -> None:
    """A true drop just above the tolerated one passes in at most 5 % of all samples, and not in far fewer."""
    outcomes = np.random.default_rng(0).multinomial(2000, [rate + drop, rate, 1 - 2 * rate - drop], size=1000)
    seen, count = np.unique(outcomes[:, :2], axis=0, return_counts=True)
    passed = [ExactAccuracy(*map(int, both), 2000).p_value(drop, 0.05) <= 0.05 for both in seen]
    share = count[passed].sum() / count.sum()
    assert 0.02 < share < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_more_of_the_same_data() -> None:
    one, three = ExactAccuracy(10, 4, 1000), ExactAccuracy(30, 12, 3000)
    assert one.p_value(0.01, 0.05, times=3) == three.p_value(0.01, 0.05) < one.p_value(0.01, 0.05)


def test_accuracy_test_counts() -> None:
    targets = np.array([0, 0, 1, 1, 2])
    dense, pruned = np.array([0, 1, 1, 1, 0]), np.array([0, 0, 2, 1, 1])
    test = accuracy_test(dense, pruned, targets)
    assert test == ExactAccuracy(lost=1, mended=1, inputs=5) and test.drop == 0
    grouped = accuracy_test(dense, pruned, targets, groups=np.array([7, 7, 3, 3, 3]))
    assert isinstance(grouped, GroupedMean)
    assert grouped.lost.tolist() == [1, -1] and grouped.sizes.tolist() == [3, 2]


def test_groups_of_one_size_are_the_t_test() -> None:
    rng = np.random.default_rng(1)
    lost = (rng.binomial(100, 0.02, 40) - rng.binomial(100, 0.015, 40)).astype(float)
    expected = stats.ttest_1samp(lost / 100, 0.01, alternative="less").pvalue
    assert GroupedMean(lost, np.full(40, 100.0)).p_value(0.01, 0.05) == pytest.approx(expected)


def test_what_groups_lose_at_one_rate_is_known() -> None:
    """Different text sizes add no uncertainty about the rate at which the texts lose."""
    sizes = np.array([5000.0, 100, 200, 50, 300])
    assert GroupedMean(0.02 * sizes, sizes).p_value(0.021, 0.05) < 1e-6


def test_grouped_test_keeps_its_error_roughly() -> None:
    rng, passed = np.random.default_rng(4), 0
    for _ in range(1000):
        sizes = np.ceil(rng.lognormal(5, 1, 60))
        rates = rng.gamma(2, 0.01 / 2, 60)  # every text loses at its own, 1 point in the mean
        lost = rng.binomial(sizes.astype(int), np.minimum(rates, 1)).astype(float)
        passed += GroupedMean(lost, sizes).p_value(0.01, 0.05) <= 0.05
    assert 0.03 < passed / 1000 < 0.13, passed


def test_one_text_shows_nothing() -> None:
    assert GroupedMean(np.array([0.0]), np.array([500.0])).p_value(0.5, 0.05) == 1
    only = roc_auc_test(np.array([0.1, 0.2, 0.9]), np.array([0.1, 0.2, 0.9]), np.array([0, 0, 1]))
    assert only.p_value(0.5, 0.05) == 1


def scores(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.2).astype(int)
    dense = np.round(rng.normal(targets, 1), 1)  # with ties
    return dense, np.round(dense + rng.normal(0, 0.5, n), 1), targets


def test_roc_auc_drop_and_its_deviation() -> None:
    dense, pruned, targets = scores(400, 2)
    test = roc_auc_test(dense, pruned, targets)
    assert test.drop == pytest.approx(roc_auc_score(targets, dense) - roc_auc_score(targets, pruned))
    low, high = paired_bootstrap(weighted_roc_auc, dense, pruned, targets, 4000, 0).drop
    assert test.deviation == pytest.approx((high - low) / (2 * 1.96), rel=0.1)
    # DeLong's covariance, summed over every pair of a positive and a negative
    up, down = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    wins = [(s[up][:, None] > s[down]) + 0.5 * (s[up][:, None] == s[down]) for s in (dense, pruned)]
    difference = wins[0] - wins[1]
    variance = difference.mean(1).var(ddof=1) / len(up) + difference.mean(0).var(ddof=1) / len(down)
    assert test.deviation == pytest.approx(math.sqrt(variance))
    assert test.rarer == len(up)


def test_roc_auc_test_keeps_its_error() -> None:
    """For two scores of equal quality, a limit of 0 is "shown" in about 5 % of all samples."""
    rng, passed = np.random.default_rng(3), 0
    for _ in range(1000):
        targets = (rng.random(300) < 0.3).astype(int)
        common = rng.normal(targets, 1)
        dense, pruned = common + rng.normal(0, 0.4, 300), common + rng.normal(0, 0.4, 300)
        passed += roc_auc_test(dense, pruned, targets).p_value(0.0, 0.05) <= 0.05
    assert 0.03 < passed / 1000 < 0.075
