"""The base class of heuristics, and the paper's two tests (docs/method.md, section 2)."""

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
    """Base class of heuristics, which decide after each stage which neurons to stop.

    A subclass sets `stages` (how many terms are evaluated before each test, ascending) and implements either `stop` or
    `solve`. The engine loops over the stages, counts FLOPs and writes the outputs of stopped neurons.

    Args:
        tau: The heuristic's setting: one number, a list with one number per eligible site, or a mapping from site names
            (wildcards are allowed) to numbers.
        n: The number of terms evaluated before the only test; used unless the subclass sets `stages`.

    Attributes:
        needs_squares: Whether `stop` needs the sum of squares, ``Prefix.q``.
        needs_full: Whether `stop` needs the exact pre-activation, ``Prefix.full``. Only oracles do.
        tau_range: The range that each value of ``tau`` must lie in; None checks nothing.
        gain_ratio: The default gain ratio under a static mask (docs/method.md, section 3).
        needs_statistics: Whether `statistics` must be set before the run.
        statistics: The statistics of each site by name, from a `Recorder`.
        predicts: Whether stopped neurons output a prediction rather than 0. Then sites need no activation.

    Raises:
        TypeError: If the subclass implements neither `stop` nor `solve`.
        SettingError: If ``tau`` or ``n`` is out of range.

    Example:
        ```python
        class Extrapolate(Heuristic):
            def stop(self, seen):
                return seen.tau * seen.s * (seen.terms / seen.n) + seen.r < 0

            def overhead(self, stage, site):
                return 3  # FLOPs of the test: two products and a sum
        ```
    """

    needs_squares: ClassVar[bool] = False
    needs_full: ClassVar[bool] = False
    tau_range: ClassVar[tuple[float, float] | None] = None
    gain_ratio: ClassVar[float] = 0.5
    needs_statistics: bool = False
    statistics: Mapping[str, SiteStatistics] | None = None
    predicts: bool = False

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
        """Compute before the run where the neurons of a site stop.

        Args:
            site: The site.
            plan: Its stages and their costs.
            tau: Its setting.

        Returns:
            The decision table, or None if `stop` decides during the run.
        """
        return None

    def stop(self, seen: Prefix) -> Tensor:
        """Decide which neurons stop after a stage. By default, the decision table that `solve` returned is applied.

        Stopped neurons output 0. If the heuristic `predicts`, they output the activation of `prediction`, and 0 where
        the prediction is ``-inf``.

        Args:
            seen: What is known after this stage. The next stage may overwrite its tensors; clone what must be kept.

        Returns:
            A bool tensor of the shape of ``seen.s``, True for neurons that stop now.
        """
        return apply.stop(seen)

    def prediction(self, seen: Prefix) -> Tensor:
        """The expected pre-activation, of the shape of ``seen.s``. Called after `stop` if the heuristic `predicts`."""
        return apply.prediction(seen)

    def order(self, site: Site) -> Tensor | str | None:
        """The order in which the terms of a site are evaluated.

        Returns:
            A permutation of the terms (N,), or one per neuron (outputs, N). None means the model's own order.
            ``"input"``
                means that each row (each position of a convolution) starts with its largest terms, by the norm of the
                input times the norm of the weights.
        """
        return None

    def refuses(self, site: Site) -> str | None:
        """The reason why this heuristic cannot test a site, which then runs dense; None if it can.

        By default, only sites before a ReLU can be tested.
        """
        if site.activation is None or site.activation.rectifies:
            return None
        return f"feeds {site.activation.name}, not a ReLU: {type(self).__name__} has no test for it; Optimal has one"

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        """Choose inputs by a rule computed before the run, instead of testing partial sums.

        A site with a choice uses the order ``"input"`` and has a single stage, whose number of terms is ignored. Other
        sites evaluate as many terms as their stages say.

        Args:
            sites: All layers of the run.
            taus: The settings of the sites that are pruned, by name.

        Returns:
            The choices by site name; empty by default.
        """
        return {}

    def overhead(self, stage: int, site: Site) -> int:
        """FLOPs of one test per tested neuron; 1 by default.

        Args:
            stage: The index of the test.
            site: The site.
        """
        return 1


class Threshold(Heuristic):
    """The paper's threshold test: stop if the estimated mean term is below ``tau``.

    Args:
        tau: The threshold, at most 0; see `Heuristic` for lists and mappings.
        n: The number of terms evaluated before the test.

    Raises:
        SettingError: If ``tau`` is above 0 or ``n`` is below 1.
    """

    tau_range = (-math.inf, 0.0)

    def stop(self, seen: Prefix) -> Tensor:
        # s/n + r/N < tau, solved for s: a single pass over s if r has one value per channel
        return below(seen.s, seen.n * (seen.tau - seen.r / seen.terms))


class StatsTest(Heuristic):
    """The paper's significance test: stop if a one-sided Wald test rejects that the mean term is at least 0.

    If the terms have no variance, their sign decides.

    Args:
        tau: The significance level, in [0, 0.5]; 0 never stops. See `Heuristic` for lists and mappings.
        n: The number of terms evaluated before the test.
        finite_population: Whether the n terms count as a sample without replacement from all N. Then the variance of
            the estimate is smaller by the factor (N - n) / N. The paper's test, False, does not take N into account.

    Raises:
        SettingError: If ``tau`` is not in [0, 0.5], ``n`` is below 1, ``finite_population`` is not a bool, or it is
            True and ``n`` is below 2, so that no variance can be estimated.
    """

    needs_squares = True
    tau_range = (0.0, 0.5)

    def __init__(self, tau: Tau | None = None, n: int = 32, finite_population: bool = False) -> None:
        super().__init__(tau, n)
        if not isinstance(finite_population, bool):
            raise SettingError(f"finite_population={finite_population!r} of StatsTest: must be true or false")
        if finite_population and self.stages[0] < 2:
            raise SettingError(f"n={n} of StatsTest: must be at least 2 with finite_population, to estimate a variance")
        self.finite_population = finite_population

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.q is not None  # needs_squares
        if seen.tau == 0:
            return torch.zeros_like(seen.s, dtype=torch.bool)
        # s/n + r/N < quantile * sqrt(v/n) is s/n + sqrt(quantile^2 v/n) < -r/N: no division by zero, few passes
        factor = NormalDist().inv_cdf(seen.tau) ** 2 / seen.n**2
        margin = (seen.q * factor).addcmul_(seen.s, seen.s, value=-factor / seen.n).clamp_(min=0)
        if self.finite_population:
            left = 1 - seen.n / torch.as_tensor(seen.terms, dtype=margin.dtype, device=margin.device)
            margin *= left.clamp(min=0) * seen.n / (seen.n - 1)
        margin.sqrt_()
        return below(margin.add_(seen.s, alpha=1 / seen.n), -seen.r / seen.terms)

    def overhead(self, stage: int, site: Site) -> int:
        return 2 * self.stages[stage] + 6


def per_site(
    values: Tau | None, sites: Sequence[Site], what: str = "tau", known: Sequence[Site] | None = None
) -> dict[str, float | None]:
    """The setting of every site, by name. In a mapping, an exact name takes precedence; then the first match wins.

    Args:
        values: One value, a list with one value per site, or a mapping from patterns to values.
        sites: The sites that need a value.
        what: The name of the setting, for messages.
        known: All sites that a mapping may name; by default ``sites``.

    Raises:
        SettingError: If a list has the wrong length, a pattern matches no site, or a site has no value.
    """
    names = [site.name for site in sites]
    if isinstance(values, Mapping):
        there = names if known is None else [site.name for site in known]
        for pattern in values:
            if not matching(pattern, there):
                raise SettingError(
                    f"{what} of {pattern!r}: there is no eligible site of that name; there are {', '.join(there)}"
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
