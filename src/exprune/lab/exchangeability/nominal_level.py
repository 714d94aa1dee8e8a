"""What a test of the first terms does where the whole sum is known: its level as it is, beside the one it names."""

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from exprune.core.errors import SettingError
from exprune.core.settings import real


@dataclass(frozen=True)
class Tested:
    """The published StatsTest of some neurons, one after n of N terms, and the truth. All are (rows, outputs).

    Attributes:
        statistic: m / sqrt(v / n), which is compared with a normal quantile (docs/method.md, section 2).
        centred: the same with m less the true mean term: what the statistic would be, were the truth exactly 0.
        distance: the true mean term, in standard errors of its estimate from n of these N terms drawn without
            replacement. At the boundary it is 0; the test promises to stop no more than a share alpha from there on.
        finite: what the standard error of a finite population is of the published one, the same for all.
    """

    statistic: Tensor
    centred: Tensor
    distance: Tensor
    finite: float

    def stopped(self, alpha: float, finite_population: bool = False, centred: bool = False) -> Tensor:
        """What is stopped at that level: bools.

        Raises:
            SettingError: alpha is outside (0, 0.5].
        """
        alpha = real(alpha, "alpha", "a level in (0, 0.5]", lambda alpha: 0 < alpha <= 0.5)
        bound = NormalDist().inv_cdf(alpha) * (self.finite if finite_population else 1)
        return (self.centred if centred else self.statistic) < bound


def stats_test(terms: Tensor, rest: Tensor, chosen: Tensor) -> Tested:
    """Test neurons from some of their terms.

    Args:
        terms: all of them, (rows, outputs, N).
        rest: what is added to their sum, (rows, outputs).
        chosen: which are evaluated, (rows, n), for all outputs of a row.

    Raises:
        SettingError: n is less than 2, or not less than N.
    """
    count, n = terms.shape[-1], chosen.shape[-1]
    if not 2 <= n < count:
        raise SettingError(f"{n} of {count} terms: at least 2, and one is to be left")
    some = terms.gather(2, chosen[:, None].expand(-1, terms.shape[1], -1))
    truth, estimate = (terms.sum(-1) + rest) / count, some.mean(-1) + rest / count
    error = (some.var(-1, correction=0) / n).sqrt()
    true_error = (terms.var(-1) / n * (1 - n / count)).sqrt()
    finite = (n / (n - 1) * (1 - n / count)) ** 0.5
    return Tested(estimate / error, (estimate - truth) / error, truth / true_error, finite)


def explained(partial: Tensor, whole: Tensor) -> Tensor:
    """The share of a neuron's variance over rows that a line through a partial sum explains: (outputs,).

    Args:
        partial, whole: (rows, outputs).
    """
    partial, whole = partial - partial.mean(0), whole - whole.mean(0)
    both, apart = (partial * whole).sum(0) ** 2, (partial**2).sum(0) * (whole**2).sum(0)
    return torch.where(apart > 0, both / apart, torch.nan)


def correlation(terms: Tensor) -> Tensor:
    """The mean correlation of two of a neuron's terms over rows, each weighed by its deviation: (outputs,).

    With it, rho, N terms are worth N / (1 + (N - 1) rho) independent ones for the variance of their mean (Kish's
    design effect), and n of equally correlated terms explain n (1 + (N - 1) rho) / (N (1 + (n - 1) rho)) of their sum.

    Args:
        terms: (rows, outputs, N).
    """
    count, of_each = terms.shape[-1], terms.var(0).sum(-1)
    return (terms.sum(-1).var(0) / of_each - 1) / (count - 1)
