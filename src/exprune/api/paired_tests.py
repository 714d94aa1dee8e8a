"""Paired tests of whether pruning lowers a metric by less than a given drop (docs/method.md, section 11).

The null hypothesis is that the metric drops by ``drop`` or more on the population. If the p-value is at most the
tolerated error, the data show that the drop is smaller.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

_IMPLAUSIBLE = 0.02  # share of the error spent on the confidence limit for the rate of mended predictions
_RATES = 33  # grid points for that rate
_CUT = 1e-12  # tail probability that is not summed but added as a bound
_SAME = 1e-9  # scores that differ by less count as equal


class PairedTest(Protocol):
    """Evidence about the drop of a metric, as a fraction."""

    @property
    def drop(self) -> float:
        """The drop observed in the data."""
        ...

    @property
    def kind(self) -> str:
        """A short statement of when the test is valid."""
        ...

    def p_value(self, drop: float, error: float, times: float = 1.0) -> float:
        """The p-value of the hypothesis that the drop is ``drop`` or more.

        Args:
            drop: The tolerated drop.
            error: The level that the p-value will be compared with.
            times: Compute the p-value as if the data set were this many times larger, with the same proportions.
        """
        ...


@dataclass(frozen=True)
class ExactAccuracy:
    """Exact test of the accuracy on independent inputs, of which pruning loses some predictions and mends others.

    It is valid for any number of inputs. Outcomes are ordered by T. Tango's score (1998). The probability of an outcome
    at least as favourable as the data is then a sum of binomials for each rate of mended predictions. The largest
    such probability is taken over the rates in a confidence interval, and the probability that the true rate lies
    outside of the interval is added (R. L. Berger and D. D. Boos, 1994).
    """

    lost: int
    mended: int
    inputs: int
    kind: str = "exact for every number of inputs"

    @property
    def drop(self) -> float:
        return (self.lost - self.mended) / self.inputs

    def p_value(self, drop: float, error: float, times: float = 1.0) -> float:
        lost, mended, inputs = (round(times * count) for count in (self.lost, self.mended, self.inputs))
        implausible = error * _IMPLAUSIBLE
        highest = stats.beta.ppf(1 - implausible, mended + 1, inputs - mended) if mended < inputs else 1.0
        rates = np.linspace(0.0, min(highest, (1 - drop) / 2), _RATES)[:, None]
        mends = np.arange(stats.binom.isf(_CUT, inputs, rates.max()) + 1)
        most = _most_lost(_score(np.array(lost), np.array(mended), inputs, drop), mends, inputs, drop)
        losing = np.minimum((rates + drop) / (1 - rates), 1.0)  # the rate among inputs that are not mended
        of_mends, tails = stats.binom.pmf(mends, inputs, rates), stats.binom.cdf(most, inputs - mends, losing)
        return float(min(1.0, (of_mends * tails).sum(axis=1).max() + implausible + _CUT))


def _score(lost: Array, mended: Array, inputs: int, drop: float) -> Array:
    """The standardised excess of lost minus mended predictions over what a drop of ``drop`` predicts.

    The standard deviation is that of the maximum-likelihood rates under a drop of ``drop``.
    """
    linear = mended * (1 - drop) + lost * (1 + drop) - 2 * inputs * drop
    rate = (linear + np.sqrt(linear**2 + 8 * inputs * mended * drop * (1 - drop))) / (4 * inputs)
    variance = inputs * (2 * rate + drop * (1 - drop))
    return (lost - mended - inputs * drop) / np.sqrt(np.maximum(variance, _CUT))


def _most_lost(score: Array, mends: Array, inputs: int, drop: float) -> Array:
    """For each number of mended predictions, the largest number of lost ones with at most this score; -1 if none."""
    low, high = np.full_like(mends, -1), inputs - mends  # the score rises with what is lost
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        within = _score(middle, mends, inputs, drop) <= score + _SAME
        low, high = np.where(within, middle, low), np.where(within, high, middle - 1)
    return low


@dataclass(frozen=True, eq=False)
class GroupedMean:
    """Student's t test of a mean loss over groups of dependent examples, such as the tokens of a text.

    The test is of a ratio over the groups. It is valid as far as the groups' deviations from their expected loss
    average to a normal distribution.

    Args:
        lost: The summed loss of each group (groups,). For an accuracy, this is lost minus mended predictions.
        sizes: The number of examples of each group (groups,).
        unit: The name of a group, in the plural.
    """

    lost: NDArray
    sizes: NDArray
    unit: str = "texts"

    @property
    def drop(self) -> float:
        return float(self.lost.sum() / self.sizes.sum())

    @property
    def kind(self) -> str:
        return f"approximate, by Student's t over {len(self.sizes):,} {self.unit}"

    def p_value(self, drop: float, error: float, times: float = 1.0) -> float:
        beyond = (self.lost - self.drop * self.sizes) / self.sizes.mean()  # deviation from the expected loss
        return _student(self.drop - drop, math.sqrt(_variance_of_mean(beyond)), len(beyond), times)


@dataclass(frozen=True)
class RocAucDrop:
    """Test of the ROC-AUC: the paired test of E. R. DeLong et al. (1988), with Student's t over the rarer class.

    It is approximate: it assumes that the difference is normally distributed.
    """

    drop: float
    deviation: float
    rarer: int

    @property
    def kind(self) -> str:
        return f"approximate, by DeLong's test with {self.rarer:,} of the rarer class"

    def p_value(self, drop: float, error: float, times: float = 1.0) -> float:
        return _student(self.drop - drop, self.deviation, self.rarer, times)


def _variance_of_mean(values: Array) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.inf


def _student(excess: float, deviation: float, count: int, times: float) -> float:
    if count < 2:
        return 1.0  # a single value does not show how much the data vary
    if deviation == 0:
        return 0.0 if excess < 0 else 1.0
    return float(stats.t.cdf(excess * math.sqrt(times) / deviation, times * count - 1))


def accuracy_test(dense: Array, pruned: Array, targets: NDArray, groups: NDArray | None = None) -> PairedTest:
    """The test of an accuracy. ``groups`` (n,) says which inputs depend on each other; None means none do."""
    return mean_test((dense == targets).astype(float) - (pruned == targets), groups)


def mean_test(lost: Array, groups: NDArray | None = None, unit: str = "texts") -> PairedTest:
    """The test of a mean loss per example (n,). It is exact for losses of -1, 0, 1 of independent examples."""
    if groups is None and np.isin(lost, (-1, 0, 1)).all():
        return ExactAccuracy(int((lost > 0).sum()), int((lost < 0).sum()), len(lost))
    units = np.arange(len(lost)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return GroupedMean(np.bincount(units, lost), np.bincount(units).astype(float), unit)


def roc_auc_test(dense: Array, pruned: Array, targets: NDArray, groups: NDArray | None = None) -> PairedTest:
    """The test of a ROC-AUC on independent examples. A tie counts one half."""
    if groups is not None:
        raise NotImplementedError("DeLong's test does not support dependent examples")
    positive = targets > 0
    up, down = (_wins(dense, positive, side) - _wins(pruned, positive, side) for side in (True, False))
    variance = _variance_of_mean(up) + _variance_of_mean(down)
    return RocAucDrop(float(up.mean()), math.sqrt(variance), min(len(up), len(down)))


def _wins(scores: Array, positive: NDArray[np.bool_], of: bool) -> Array:
    """For each example of one class, the share of the other class that it is correctly ordered against."""
    one, other = scores[positive == of], np.sort(scores[positive != of])
    below = (np.searchsorted(other, one, "left") + np.searchsorted(other, one, "right")) / 2
    return below / len(other) if of else 1 - below / len(other)
