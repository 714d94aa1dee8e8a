"""Shared base of the tests that are calibrated on the trained network (docs/method.md, section 8).

`SiteStatistics` gives a regression line and a residual standard deviation, so that z ~ Normal(expected, spread). A
neuron stops if the expected value is below a bound, which a subclass provides. All bounds are computed before the run
and stored in decision tables.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT, Plan, checked
from exprune.core.calibration.lines import SiteStatistics, floored
from exprune.core.decisions.table import NEGLIGIBLE, WIDTHS, DecisionTable, test_flops
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Tau

STAGES = (32, 64, 128, 192, 256)
_KNOWN = 1e-30  # the standard deviation or norm of a value that is known exactly; float32 can represent it
STAGES_BY_INPUT = (8, 16, *STAGES)  # in the order of each input, the first terms are more informative


def default_stages(order: str) -> tuple[int, ...]:
    """The default calibration stages for an order of `exprune.core.term_order`."""
    return STAGES_BY_INPUT if order == BY_INPUT else STAGES


def _measured_at(statistics: Mapping[str, SiteStatistics] | None) -> tuple[int, ...]:
    """The stages of all sites together; a short site has only the first of them."""
    return tuple(sorted({n for of in (statistics or {}).values() for n in of.stages}))


class CalibratedTest(Heuristic, ABC):
    """Base class of the calibrated tests. A subclass implements `bounds`.

    Args:
        tau: The setting of each site, if the subclass has one; see `Heuristic`.
        stages: How many terms are evaluated before each test, ascending. A site skips stages that exceed its number of
            terms. None uses the stages of the statistics.
        statistics: The statistics of each site, from a `Recorder`. None means that they are set before the run.

    Raises:
        SettingError: If the statistics were measured at other stages. Setting `statistics` later raises it too.
    """

    needs_statistics = True
    gain_ratio = 1000.0  # the test is one comparison, so under a static mask it pays as long as any weights are left

    def __init__(
        self,
        tau: Tau | None = None,
        stages: Sequence[int] | None = None,
        statistics: Mapping[str, SiteStatistics] | None = None,
    ) -> None:
        super().__init__(tau)
        self._statistics: Mapping[str, SiteStatistics] | None = None
        self._stages = None if stages is None else checked(stages)
        self.statistics = statistics

    @property
    def stages(self) -> tuple[int, ...]:
        """The given stages, or else those that the statistics were measured at."""
        if self._stages is None:
            return _measured_at(self._statistics) or STAGES_BY_INPUT
        return self._stages

    @stages.setter
    def stages(self, stages: Sequence[int]) -> None:
        self._stages = checked(stages)

    @property
    def statistics(self) -> Mapping[str, SiteStatistics] | None:
        """The statistics of each site, by name; None if they are not set yet."""
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Mapping[str, SiteStatistics] | None) -> None:
        measured, given = _measured_at(statistics), self._stages
        # If all sites are short, no site was measured at the longest stages.
        if measured and given is not None and tuple(n for n in given if n <= measured[-1]) != measured:
            raise SettingError(
                f"stages={list(given)} of {type(self).__name__}: its statistics were measured at {list(measured)}; "
                "leave stages out, or calibrate with them"
            )
        self._statistics = statistics

    @abstractmethod
    def bounds(
        self, site: Site, plan: Plan, tau: float | None, sd: Tensor, gradient: Tensor | None, widths: Tensor
    ) -> dict[str, Tensor | None]:
        """The bounds below which neurons stop.

        Args:
            site: The site.
            plan: Its stages and their costs.
            tau: Its setting.
            sd: The standard deviation of z after each stage of the plan, for a row of usual width (stages, outputs).
            gradient: The mean squared gradient of each output (outputs,), or None if it was not measured.
            widths: Widths of rows in units of the usual width, ascending. The first may be 0, for a row that is known.

        Returns:
            Those of ``below``, ``zero_below`` and ``narrow`` that apply; see `DecisionTable`.
        """

    def refuses(self, site: Site) -> str | None:
        return None

    def order(self, site: Site) -> Tensor | str | None:
        return None if self.statistics is None or site.name not in self.statistics else self.statistics[site.name].order

    def overhead(self, stage: int, site: Site) -> int:
        of = (self.statistics or {}).get(site.name)
        by_input = of is not None and isinstance(of.order, str)
        return test_flops(site, stage, by_input, self.predicts, gated=of is not None and of.gate is not None)

    def solve(self, site: Site, plan: Plan, tau: float | None) -> DecisionTable:
        of = (self._statistics or {}).get(site.name)
        if of is None:
            raise SettingError(f"{type(self).__name__}: no statistics of site {site.name}; calibrate first")
        if unknown := [stage.n for stage in plan.stages if stage.n not in of.stages]:
            raise SettingError(
                f"{type(self).__name__}: no statistics of site {site.name} after {unknown[0]} terms; "
                "calibrate with these stages"
            )
        stages = [of.stages.index(stage.n) for stage in plan.stages]
        slope, offset, sd = (values[stages].cpu() for values in (of.slope, of.offset, of.sd))
        gradient = None if of.gradient is None else floored(of.gradient.cpu())
        usual, widths = None, torch.ones(1, dtype=sd.dtype)
        if plan.by_input:
            assert of.rest is not None
            rest = of.rest[stages].cpu()
            usual, widths = rest.clamp(min=max(float(rest.max()) * NEGLIGIBLE, _KNOWN)), WIDTHS
            sd = (sd * usual[:, None]).clamp(min=_KNOWN)  # it is 0 in a layer whose terms are all zero
        bounds = self.bounds(site, plan, tau, sd, gradient, widths)
        if not plan.by_input and bounds["below"] is not None:
            # If the partial sum does not predict the full sum, no bound is low enough.
            bounds["below"] = torch.where(slope <= 0, -torch.inf, bounds["below"])
        gate = of.gate if plan.by_input else None
        numbers = tuple(stage.n for stage in plan.stages)
        order = None if isinstance(of.order, str) else of.order
        about: dict[str, Any] = {"usual": usual, "gate": gate, "predicts": self.predicts, "order": order}
        return DecisionTable(numbers, slope, offset, **{**bounds, **about})
