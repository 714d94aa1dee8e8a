"""What tests calibrated on the trained network share (docs/method.md, section 8).

Each is one comparison a neuron: with the line and the residual spread of :class:`SiteStatistics`,
``z ~ Normal(expected, spread)``, and a neuron stops where what is expected lies far enough below 0.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT, Plan, checked
from exprune.core.calibration.lines import SiteStatistics, floored
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Prefix, Tau
from exprune.core.heuristics.widths import MOST, NEGLIGIBLE, SHARES, WIDTHS, share_places, width_places
from exprune.core.sums.elementwise import below

STAGES = (32, 64, 128, 192, 256)
STAGES_BY_INPUT = (8, 16, *STAGES)  # in the order of each input the first terms tell more


@dataclass(frozen=True)
class _Lines:
    """Of all stages of a site: a neuron stops where ``slope * s + r`` lies below the bound.

    Attributes:
        slope, offset, bound: (stages, outputs, ...), shaped to broadcast with the sums. In the order of each input the
            slope is (shares, stages, outputs), the others are (widths + 1, stages, outputs), first those of no width.
        zero: as ``bound``: below which expectation what stops outputs 0; None: a ReLU tells.
        rest: (stages,), what is usual; None: another order.
        gate: (outputs,), what is usual of what multiplies the outputs; None: nothing does.
    """

    slope: Tensor
    offset: Tensor
    bound: Tensor
    zero: Tensor | None = None
    rest: Tensor | None = None
    gate: Tensor | None = None


def default_stages(order: str) -> tuple[int, ...]:
    """The stages to calibrate at, of an order of :func:`~exprune.core.term_order`, where none are asked for."""
    return STAGES_BY_INPUT if order == BY_INPUT else STAGES


def _measured_at(statistics: Mapping[str, SiteStatistics] | None) -> tuple[int, ...]:
    """All stages of the sites' statistics, of which a short site has the first ones."""
    return tuple(sorted({n for of in (statistics or {}).values() for n in of.stages}))


class CalibratedTest(Heuristic):
    """What the calibrated tests share; a subclass says how many standard deviations below 0 the mean must lie.

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
        self._known: dict[tuple, tuple[Plan, SiteStatistics, _Lines]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What decides: all but what is worked out from it."""
        return {**vars(self), "_known": {}}

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
    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor | float:
        """How many sd below 0 the expected z must lie; infinite: never stop; -inf: always.

        Args:
            sd: (stages, outputs), of the stages of ``seen.plan``.
            gradient: (outputs,), if it was measured.

        Returns:
            One number, or one for each of ``sd``.
        """

    def margins(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor:
        """:meth:`margin` where ``sd`` is so many times as wide; the first of (widths, stages, outputs) for 0 times."""
        of_each = [self.margin(seen, sd * width, gradient) for width in (1e-6, *widths.tolist())]
        return torch.stack([torch.as_tensor(one, dtype=sd.dtype, device=sd.device).expand_as(sd) for one in of_each])

    def threshold(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        """Below which expectation of z a neuron stops: (stages, outputs)."""
        margin = torch.as_tensor(self.margin(seen, sd, gradient), dtype=sd.dtype, device=sd.device)
        return torch.where(margin.isinf(), -margin, -margin * sd)

    def thresholds(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor:
        """Likewise, where ``sd`` is so many times as wide.

        Returns:
            (widths + 1, stages, outputs), the first where nothing is left to be known.
        """
        margin = self.margins(seen, sd, gradient, widths)
        each = torch.cat([widths.new_zeros(1), widths]).to(sd)[:, None, None]
        # No width times an infinite margin is never or always, not undefined.
        return torch.where(margin.isinf(), -margin, -each * sd * margin)

    def zero_threshold(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor | None:
        """Below which expectation of z what stops outputs 0, (stages, outputs); None: its activation tells."""

    def zero_thresholds(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor | None:
        """Likewise, where ``sd`` is so many times as wide: (widths + 1, stages, outputs)."""

    def refuses(self, site: Site) -> str | None:
        return None

    def order(self, site: Site) -> Tensor | str | None:
        return None if self.statistics is None or site.name not in self.statistics else self.statistics[site.name].order

    def stop(self, seen: Prefix) -> Tensor:
        if seen.plan.by_input:
            line, width = (seen.s * self._slope_of_rows(seen)).add_(seen.r), self._width_of_rows(seen)
            if self.predicts:
                seen.kept["line"] = seen, line, width  # which the prediction goes on from
            bound = self._lines(seen).bound[:, seen.stage]
            if (of_neurons := self._width_of_neurons(seen)) is not None:
                return below(line, bound.gather(0, of_neurons))
            return below(line, bound.index_select(0, width))
        if seen.stage not in seen.kept:
            seen.kept[seen.stage] = self._folded(seen)
        slope, bound = seen.kept[seen.stage]
        if slope is not None:
            r = torch.as_tensor(seen.r, dtype=seen.part.dtype, device=seen.part.device)
            return below(torch.addcmul(r, seen.part, slope), bound)
        return below(seen.part, bound)

    def bounds(self, site: Site, plan: Plan, tau: float | None, bias: Tensor) -> Tensor:
        """Below which sum of its first terms a neuron stops, after each stage of the plan: (stages, outputs) float32.

        Of a site without a residual, in an order that all of its neurons and inputs share.

        Args:
            tau: the site's knob, if the test has one.
            bias: (outputs,), what is added to the terms.
        """
        part = torch.zeros(1, len(bias))
        seen = Prefix(site, 0, plan.stages[0].n, plan.terms, tau, part, None, None, bias.to(part), plan)
        return torch.stack([self._folded(replace(seen, stage=stage))[1] for stage in range(len(plan.stages))])

    def prediction(self, seen: Prefix) -> Tensor:
        expected, width = self._expected(seen)
        if (zero := self._lines(seen).zero) is None:
            return expected
        zero = zero[seen.stage] if width is None else zero[:, seen.stage].index_select(0, width)
        return expected.masked_fill_(expected < zero, -math.inf)

    def _expected(self, seen: Prefix) -> tuple[Tensor, Tensor | None]:
        """What z is expected to be, and how much each row has left, as :meth:`_width_of_rows` says it."""
        offset = self._lines(seen).offset
        if not seen.plan.by_input:
            return (seen.s * self._lines(seen).slope[seen.stage]).add_(offset[seen.stage]).add_(seen.r), None
        of, line, width = seen.kept.pop("line", (None, None, None))
        if of is not seen:  # it is asked for once more
            line, width = (seen.s * self._slope_of_rows(seen)).add_(seen.r), self._width_of_rows(seen)
        return line.add_(offset[:, seen.stage].index_select(0, width)), width

    def overhead(self, stage: int, site: Site) -> int:
        if self.order(site) != BY_INPUT:
            return 3 if site.residual else 1  # a comparison; with a residual slope * s + r is not known beforehand
        line = 2 + site.residual  # slope * s + r < bound; without a residual r stands in the bound
        if site.before_activation:
            return line + self.predicts
        # Its row alone tells which neurons stop, or its row and a neuron's gate, by a product and a comparison.
        by_gate = (self.statistics or {})[site.name].gate is not None
        return 2 * by_gate + (line if stage == 0 else 0)  # the prediction once, charged to all

    def _slope_of_rows(self, seen: Prefix) -> Tensor:
        """Of some rows in the order of each input, (rows, outputs), by the share that they have left."""
        assert seen.rest is not None and seen.norm is not None  # in this order
        share = share_places(seen.rest, seen.norm).flatten()
        return self._lines(seen).slope[:, seen.stage].index_select(0, share)

    def _width_of_rows(self, seen: Prefix) -> Tensor:
        """How much some rows in the order of each input have left: their places in the tables, (rows,)."""
        rest = self._lines(seen).rest
        assert rest is not None and seen.rest is not None  # in this order
        return width_places(seen.rest / rest[seen.stage]).flatten()

    def _width_of_neurons(self, seen: Prefix) -> Tensor | None:
        """Likewise how wide each neuron's error will be where its gate lets it through, (rows, outputs); None: no gate.

        Before an activation the damage is no matter of the width alone.
        """
        lines = self._lines(seen)
        if seen.gate is None or lines.gate is None or seen.site.before_activation:
            return None
        assert lines.rest is not None and seen.rest is not None  # in this order
        let_through = (seen.gate.abs() / lines.gate).clamp_(max=MOST).nan_to_num_(nan=MOST)
        return width_places(seen.rest / lines.rest[seen.stage] * let_through)

    def _folded(self, seen: Prefix) -> tuple[Tensor | None, Tensor]:
        """Of the stage: slope and bound for ``slope * part + r < bound``; no slope where it says ``part < bound``."""
        lines = self._lines(seen)
        slope, bound = lines.slope[seen.stage], lines.bound[seen.stage]
        if seen.scale is not None:
            slope = slope * seen.scale
        if seen.site.residual or slope.min() <= 0:
            return slope, bound
        return None, (bound - seen.r) / slope

    def _lines(self, seen: Prefix) -> _Lines:
        if self._statistics is None or (of := self._statistics.get(seen.site.name)) is None:
            raise SettingError(f"{type(self).__name__}: no statistics of site {seen.site.name}; calibrate first")
        key = (seen.site.name, seen.tau, seen.part.dtype, seen.part.device)
        plan, statistics, lines = self._known.get(key, (None, None, None))
        # Another run has plans of its own; what was worked out for a plan is of it and these statistics alone.
        if lines is None or plan is not seen.plan or statistics is not of:
            lines = self._measured(seen, of)
            self._known[key] = seen.plan, of, lines
        return lines

    def _measured(self, seen: Prefix, of: SiteStatistics) -> _Lines:
        if unknown := [stage.n for stage in seen.plan.stages if stage.n not in of.stages]:
            raise SettingError(
                f"{type(self).__name__}: no statistics of site {seen.site.name} after {unknown[0]} terms; "
                "calibrate with these stages"
            )
        stages = [of.stages.index(stage.n) for stage in seen.plan.stages]
        slope, offset, sd = (values[stages].to(seen.part.device) for values in (of.slope, of.offset, of.sd))
        gradient = None if of.gradient is None else floored(of.gradient.to(sd.device))
        if seen.plan.by_input:
            assert of.rest is not None
            tables = self._tables(seen, slope, offset, sd, of.rest[stages].to(sd), gradient)
            return tables if of.gate is None else replace(tables, gate=of.gate.to(seen.part))
        bound, zero = self.threshold(seen, sd, gradient), self.zero_threshold(seen, sd, gradient)
        # Where the partial sum says nothing of the full one, no bound is low enough.
        never = (slope <= 0) | (bound == -math.inf)
        bound = torch.where(never, -math.inf, bound - offset)
        slope = torch.where(never, 1.0, slope)
        shape = (len(stages), -1, *(1,) * seen.spatial_dims)
        zero = None if zero is None else zero.to(seen.part.dtype).view(shape)
        slope, offset, bound = (values.to(seen.part.dtype).view(shape) for values in (slope, offset, bound))
        return _Lines(slope, offset, bound, zero)

    def _tables(
        self, seen: Prefix, slope: Tensor, offset: Tensor, sd: Tensor, rest: Tensor, gradient: Tensor | None
    ) -> _Lines:
        """Of the order of each input."""
        usual = rest.clamp(min=float(rest.max()) * NEGLIGIBLE)[:, None]
        offsets = torch.cat([WIDTHS.new_zeros(1), WIDTHS]).to(sd)[:, None, None] * usual * offset
        bound = self.thresholds(seen, sd * usual, gradient, WIDTHS) - offsets
        zero = self.zero_thresholds(seen, sd * usual, gradient, WIDTHS)
        slopes = 1 + SHARES.to(sd)[:, None, None] * slope
        zero = None if zero is None else zero.to(seen.part.dtype)
        slope, offset, bound, rest = (
            values.to(seen.part.dtype) for values in (slopes, offsets, bound, usual.flatten())
        )
        return _Lines(slope, offset, bound, zero, rest)
