"""What tests calibrated on the trained network share (docs/method.md, section 8).

With the line and the residual spread of :class:`SiteStatistics`, ``z ~ Normal(expected, spread)``: a neuron stops where
what is expected lies below a bound, which a subclass gives. All is solved before the run, into decision tables.
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
_KNOWN = 1e-30  # a deviation, or a norm, of what is known; float32 can hold it
STAGES_BY_INPUT = (8, 16, *STAGES)  # in the order of each input the first terms tell more


def default_stages(order: str) -> tuple[int, ...]:
    """The stages to calibrate at, of an order of :func:`~exprune.core.term_order`, where none are asked for."""
    return STAGES_BY_INPUT if order == BY_INPUT else STAGES


def _measured_at(statistics: Mapping[str, SiteStatistics] | None) -> tuple[int, ...]:
    """All stages of the sites' statistics, of which a short site has the first ones."""
    return tuple(sorted({n for of in (statistics or {}).values() for n in of.stages}))


class CalibratedTest(Heuristic, ABC):
    """What the calibrated tests share; a subclass says below which expectation a neuron stops.

    Args:
        tau: per-site knob of a subclass, if it has one.
        stages: terms evaluated before each test; a site skips those that it has not. None: those of the statistics.
        statistics: by site, from :class:`~exprune.core.Recorder`; None: to be set before the run.

    Raises:
        SettingError: the statistics are of other stages than these; also where they are set later.
    """

    needs_statistics = True
    gain_ratio = 1000.0  # a test costs one comparison, so under a static mask it pays wherever weights are left

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
        """As they were given, else those that the statistics were measured at."""
        if self._stages is None:
            return _measured_at(self._statistics) or STAGES_BY_INPUT
        return self._stages

    @stages.setter
    def stages(self, stages: Sequence[int]) -> None:
        self._stages = checked(stages)

    @property
    def statistics(self) -> Mapping[str, SiteStatistics] | None:
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Mapping[str, SiteStatistics] | None) -> None:
        measured, given = _measured_at(statistics), self._stages
        # Where all sites are short, the longest stages are measured nowhere.
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
        """Where neurons stop, of rows that are so many times as wide as usual.

        Args:
            sd: (stages, outputs) of z in the usual row, after the stages of the plan.
            gradient: (outputs,), if it was measured.
            widths: ascending; 0, of a row that is known, may be the first.

        Returns:
            ``below``, ``zero_below`` and ``narrow``, those that there are, as of :class:`DecisionTable`.
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
            sd = (sd * usual[:, None]).clamp(min=_KNOWN)  # of a layer whose terms are all zero
        bounds = self.bounds(site, plan, tau, sd, gradient, widths)
        if not plan.by_input and bounds["below"] is not None:
            # Where the partial sum says nothing of the full one, no bound is low enough.
            bounds["below"] = torch.where(slope <= 0, -torch.inf, bounds["below"])
        gate = of.gate if plan.by_input else None
        numbers = tuple(stage.n for stage in plan.stages)
        order = None if isinstance(of.order, str) else of.order
        about: dict[str, Any] = {"usual": usual, "gate": gate, "predicts": self.predicts, "order": order}
        return DecisionTable(numbers, slope, offset, **{**bounds, **about})
