"""When to stop a neuron: one small decision a class (docs/method.md, section 2)."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions import apply
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.prefix import Prefix
from exprune.core.decisions.table import DecisionTable
from exprune.core.discovery.sites import Site, matching
from exprune.core.errors import SettingError
from exprune.core.partial_sums.elementwise import below
from exprune.core.settings import plain_knob, real, whole

Tau = float | Sequence[float] | Mapping[str, float]


class Heuristic:
    """Decides which neurons to stop after each stage.

    A subclass sets :attr:`stages` (how many terms are evaluated before each test, ascending) and implements
    :meth:`stop`, or :meth:`solve`; the engine loops over the stages, counts and writes the zeros.

    Args:
        tau: the knob: one number, a list (one per eligible site), or a mapping of site names with wildcards.
        n: the terms evaluated before the only test.
    """

    needs_squares: ClassVar[bool] = False
    needs_full: ClassVar[bool] = False
    tau_range: ClassVar[tuple[float, float] | None] = None  # of every value; None: tau is not checked
    gain_ratio: ClassVar[float] = 0.5  # of a run that is told none (docs/method.md, section 3)
    needs_statistics: bool = False  # whether those are to be set before the run
    statistics: Mapping[str, SiteStatistics] | None = None  # by site, of a Recorder
    predicts: bool = False  # whether what it stops outputs a prediction, so that a site needs no ReLU

    def __init__(self, tau: Tau | None = None, n: int = 32) -> None:
        if type(self).stop is Heuristic.stop and type(self).solve is Heuristic.solve:
            raise TypeError(f"{type(self).__name__} implements neither stop nor solve")
        n = whole(n, "n", "a whole number of terms, at least 1", lambda n: n >= 1)
        self.tau = plain_knob(tau)
        self.stages: tuple[int, ...] = (n,)
        if self.tau_range is None:
            return
        low, high = self.tau_range
        if isinstance(self.tau, Mapping):
            values = list(self.tau.values())
        else:
            values = self.tau if isinstance(self.tau, list) else [self.tau]
        for value in values:
            wanted, of = f"a number in [{low:g}, {high:g}]", type(self).__name__
            real(value, "tau", wanted, lambda value: low <= value <= high, of)

    def solve(self, site: Site, plan: Plan, tau: Any) -> DecisionTable | None:
        """Where this site's neurons stop, worked out before the run; None, of one whose :meth:`stop` says it.

        Args:
            tau: the site's knob.
        """
        return None

    def stop(self, seen: Prefix) -> Tensor:
        """Which neurons to stop now: a bool tensor in the shape of ``seen.s``. By default as :meth:`solve` said.

        They output 0, or, of a heuristic that :attr:`predicts`, what their activation makes of :meth:`prediction`,
        which is 0 for ``-inf``.

        The next stage may overwrite ``seen.s``: clone what is to be kept.
        """
        return apply.stop(seen)

    def prediction(self, seen: Prefix) -> Tensor:
        """The expected z in the shape of ``seen.s``, asked for after :meth:`stop` where it :attr:`predicts`."""
        return apply.prediction(seen)

    def order(self, site: Site) -> Tensor | str | None:
        """The order in which terms are evaluated, (N,) or one per neuron (outputs, N); None: the model's own.

        ``"input"``: of every row (position) the largest first, by norm of the input times norm of the weights.
        """
        return None

    def refuses(self, site: Site) -> str | None:
        """Why it cannot test such a site, which then runs dense; None where it can: before a ReLU, unless it says."""
        if site.activation is None or site.activation.rectifies:
            return None
        return f"feeds {site.activation.name}, no ReLU, for which {type(self).__name__} has no test; Optimal has one"

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        """Which inputs are evaluated before the only stage, whose number is then no matter; worked out before the run.

        Such a site takes the order ``"input"``. Others evaluate as many terms as their stages say.

        Args:
            sites: all layers of the run.
            taus: the knobs, by name, of those that are pruned.
        """
        return {}

    def overhead(self, stage: int, site: Site) -> int:
        """FLOPs of the test at ``stage``, per neuron tested."""
        return 1


class Threshold(Heuristic):
    """Stop where the estimated mean term is below ``tau <= 0``."""

    tau_range = (-math.inf, 0.0)

    def stop(self, seen: Prefix) -> Tensor:
        # s/n + r/N < tau; solved for s, it is one pass over s where r is one value per channel
        return below(seen.s, seen.n * (seen.tau - seen.r / seen.terms))


class StatsTest(Heuristic):
    """Stop where a one-sided Wald test at significance level ``tau`` rejects that the mean term is >= 0.

    tau lies in [0, 0.5]; 0 never stops. Terms without variance are judged by their sign.
    """

    needs_squares = True
    tau_range = (0.0, 0.5)

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.q is not None  # needs_squares
        if seen.tau == 0:
            return torch.zeros_like(seen.s, dtype=torch.bool)
        # s/n + r/N < quantile * sqrt(v/n) as s/n + sqrt(quantile^2 v/n) < -r/N: no division by zero, few passes
        factor = NormalDist().inv_cdf(seen.tau) ** 2 / seen.n**2
        margin = (seen.q * factor).addcmul_(seen.s, seen.s, value=-factor / seen.n).clamp_(min=0).sqrt_()
        return below(margin.add_(seen.s, alpha=1 / seen.n), -seen.r / seen.terms)

    def overhead(self, stage: int, site: Site) -> int:
        return 2 * self.stages[stage] + 6


def per_site(
    values: Tau | None, sites: Sequence[Site], what: str = "tau", known: Sequence[Site] | None = None
) -> dict[str, float | None]:
    """The knob of every site, by name. In a mapping an exact name goes before a wildcard, then the first match wins.

    ``known`` are all the sites that a mapping may name (default: ``sites``).

    Raises:
        SettingError: a list of another length, a pattern that matches no site, a site without a value.
    """
    names = [site.name for site in sites]
    if isinstance(values, Mapping):
        there = names if known is None else [site.name for site in known]
        for pattern in values:
            if not matching(pattern, there):
                raise SettingError(
                    f"{what} of {pattern!r}: no eligible site of that name; there are {', '.join(there)}"
                )
        found = {name: _lookup(values, name) for name in names}
        if missing := [name for name, value in found.items() if value is None]:
            raise SettingError(f"{what}: no value for site {missing[0]!r}; add it, or '*' for the rest")
        return found
    if isinstance(values, Sequence):
        if len(values) != len(names):
            raise SettingError(f"{what}: {len(values)} values for {len(names)} eligible sites ({', '.join(names)})")
        return dict(zip(names, values, strict=True))
    return dict.fromkeys(names, values)


def _lookup(values: Mapping[str, float], name: str) -> float | None:
    if name in values:
        return values[name]
    return next((value for pattern, value in values.items() if matching(pattern, [name])), None)
