"""Whether pruning costs a metric at most so much: tests of predictions in pairs (docs/method.md, section 11).

Each tests the hypothesis that on the population the metric drops by ``drop`` or more. Where its p-value is at most the
error that is tolerated, the data show that the drop is smaller.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

_IMPLAUSIBLE = 0.02  # of the error: the probability that pruning mends predictions at another rate than is tried
_RATES = 33  # that are tried
_CUT = 1e-12  # probability that is not summed, and added instead
_SAME = 1e-9  # scores that differ by less


class PairedTest(Protocol):
    """Evidence about a metric's drop, as a fraction."""

    @property
    def drop(self) -> float:
        """That of the data."""
        ...

    @property
    def kind(self) -> str:
        """How the test is valid, in a few words."""
        ...

    def p_value(self, drop: float, error: float, times: float = 1.0) -> float:
        """The p-value of a drop of ``drop`` or more; with the same data ``times`` over, what more of them would show.

        ``error`` is what it will be compared with.
        """
        ...


@dataclass(frozen=True)
class ExactAccuracy:
    """Accuracy of independent inputs, of which pruning loses some predictions and mends others.

    Valid for every number of inputs. Outcomes are ordered by T. Tango's score (1998); what is at least as good as the
    data is then a sum of binomials for every rate at which pruning mends predictions. Of the rates that the data leave
    plausible the worst is taken, and the probability that the true one is none of them is added (R. L. Berger and
    D. D. Boos, 1994).
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
        losing = np.minimum((rates + drop) / (1 - rates), 1.0)  # of the inputs that are not mended
        of_mends, tails = stats.binom.pmf(mends, inputs, rates), stats.binom.cdf(most, inputs - mends, losing)
        return float(min(1.0, (of_mends * tails).sum(axis=1).max() + implausible + _CUT))


def _score(lost: Array, mended: Array, inputs: int, drop: float) -> Array:
    """By how many deviations lost minus mended exceeds what a drop of ``drop`` lets expect.

    The deviation is that of the likeliest rates under which the metric drops by that much.
    """
    linear = mended * (1 - drop) + lost * (1 + drop) - 2 * inputs * drop
    rate = (linear + np.sqrt(linear**2 + 8 * inputs * mended * drop * (1 - drop))) / (4 * inputs)
    variance = inputs * (2 * rate + drop * (1 - drop))
    return (lost - mended - inputs * drop) / np.sqrt(np.maximum(variance, _CUT))


def _most_lost(score: Array, mends: Array, inputs: int, drop: float) -> Array:
    """For every number of mended predictions the most lost ones with at most this score, -1 where there is none."""
    low, high = np.full_like(mends, -1), inputs - mends  # the score rises with what is lost
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        within = _score(middle, mends, inputs, drop) <= score + _SAME
        low, high = np.where(within, middle, low), np.where(within, high, middle - 1)
    return low


@dataclass(frozen=True, eq=False)
class GroupedMean:
    """The mean of what examples lose, in groups whose examples depend on each other, such as the tokens of a text.

    Student's t of a ratio over the groups: valid as far as what so many of them lose, beyond their share, is normally
    distributed.

    Args:
        lost: the sum of each group (groups,): of an accuracy, lost minus mended predictions.
        sizes: the examples of each (groups,).
        unit: what a group is called.
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
        beyond = (self.lost - self.drop * self.sizes) / self.sizes.mean()  # what a group loses beyond its share
        return _student(self.drop - drop, math.sqrt(_variance_of_mean(beyond)), len(beyond), times)


@dataclass(frozen=True)
class RocAucDrop:
    """ROC-AUC: the paired test of E. R. DeLong et al. (1988), with Student's t over the rarer class.

    Valid as far as the difference of so many examples is normally distributed.
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
        return 1.0  # nobody knows how such data vary
    if deviation == 0:
        return 0.0 if excess < 0 else 1.0
    return float(stats.t.cdf(excess * math.sqrt(times) / deviation, times * count - 1))


def accuracy_test(dense: Array, pruned: Array, targets: NDArray, groups: NDArray | None = None) -> PairedTest:
    """The test of an accuracy. ``groups`` (n,) says which inputs depend on each other."""
    return mean_test((dense == targets).astype(float) - (pruned == targets), groups)


def mean_test(lost: Array, groups: NDArray | None = None, unit: str = "texts") -> PairedTest:
    """The test of the mean of what each example loses (n,): exact where those are -1, 0 and 1 of independent ones."""
    if groups is None and np.isin(lost, (-1, 0, 1)).all():
        return ExactAccuracy(int((lost > 0).sum()), int((lost < 0).sum()), len(lost))
    units = np.arange(len(lost)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return GroupedMean(np.bincount(units, lost), np.bincount(units).astype(float), unit)


def roc_auc_test(dense: Array, pruned: Array, targets: NDArray, groups: NDArray | None = None) -> PairedTest:
    """The test of a ROC-AUC of independent examples; a tie counts half."""
    if groups is not None:
        raise NotImplementedError("DeLong's test of examples in groups")
    positive = targets > 0
    up, down = (_wins(dense, positive, side) - _wins(pruned, positive, side) for side in (True, False))
    variance = _variance_of_mean(up) + _variance_of_mean(down)
    return RocAucDrop(float(up.mean()), math.sqrt(variance), min(len(up), len(down)))


def _wins(scores: Array, positive: NDArray[np.bool_], of: bool) -> Array:
    """Of each example of one class, the share of the other class that it is ordered rightly against."""
    one, other = scores[positive == of], np.sort(scores[positive != of])
    below = (np.searchsorted(other, one, "left") + np.searchsorted(other, one, "right")) / 2
    return below / len(other) if of else 1 - below / len(other)
