"""Tests calibrated on the trained network, and the oracle (docs/method.md, section 8).

Each is one comparison a neuron: with the line and the residual spread of :class:`SiteStatistics`,
``z ~ Normal(slope * s + offset + r, sd)``, and a neuron stops where ``slope * s + r < bound``.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from exprune.core.accounting.plan import checked
from exprune.core.calibration.moments import SiteStatistics, floored
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Prefix, Tau
from exprune.core.heuristics.stopping import at_once, looking_ahead
from exprune.core.settings import real
from exprune.core.sums.elementwise import below

STAGES = (32, 64, 128, 192, 256)


class CalibratedTest(Heuristic):
    """What the calibrated tests share; a subclass says how many standard deviations below 0 the mean must lie.

    Args:
        tau: per-site knob of a subclass, if it has one.
        stages: terms evaluated before each test; a site skips those that it has not.
        statistics: by site, from :class:`~exprune.core.Recorder`; None: to be set before the run.
    """

    def __init__(
        self,
        tau: Tau | None = None,
        stages: Sequence[int] = STAGES,
        statistics: Mapping[str, SiteStatistics] | None = None,
    ) -> None:
        super().__init__(tau)
        self.stages = checked(stages)
        self.statistics = statistics
        self._bounds: dict[tuple, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor | float:
        """How many sd below 0 the expected z must lie; infinite: never stop.

        Args:
            sd: (stages, outputs), of the stages of ``seen.plan``.
            gradient: (outputs,), if it was measured.

        Returns:
            One number, or one for each of ``sd``.
        """

    def order(self, site: Site) -> Tensor | None:
        return None if self.statistics is None or site.name not in self.statistics else self.statistics[site.name].order

    def stop(self, seen: Prefix) -> Tensor:
        if seen.stage not in seen.kept:
            seen.kept[seen.stage] = self._folded(seen)
        slope, bound = seen.kept[seen.stage]
        if slope is not None:
            r = torch.as_tensor(seen.r, dtype=seen.part.dtype, device=seen.part.device)
            return below(torch.addcmul(r, seen.part, slope), bound)
        return below(seen.part, bound)

    def overhead(self, stage: int, site: Site) -> int:
        return 3 if site.residual else 1  # a comparison; with a residual slope * s + r is not known beforehand

    def _folded(self, seen: Prefix) -> tuple[Tensor | None, Tensor]:
        """Of the stage: slope and bound for ``slope * part + r < bound``; no slope where it says ``part < bound``."""
        slope, bound = self._line(seen)
        if seen.scale is not None:
            slope = slope * seen.scale
        if seen.site.residual or slope.min() <= 0:
            return slope, bound
        return None, (bound - seen.r) / slope

    def _line(self, seen: Prefix) -> tuple[Tensor, Tensor]:
        key = (seen.site.name, seen.part.dtype, seen.part.device)
        if key not in self._bounds:
            self._bounds[key] = self._lines(seen)
        slopes, bounds = self._bounds[key]
        return slopes[seen.stage], bounds[seen.stage]

    def _lines(self, seen: Prefix) -> tuple[Tensor, Tensor]:
        """Of all stages of the site, (stages, outputs), shaped to broadcast with ``seen.part``."""
        if self.statistics is None or seen.site.name not in self.statistics:
            raise SettingError(f"{type(self).__name__}: no statistics of site {seen.site.name}; calibrate first")
        of = self.statistics[seen.site.name]
        if unknown := [stage.n for stage in seen.plan.stages if stage.n not in of.stages]:
            raise SettingError(
                f"{type(self).__name__}: no statistics of site {seen.site.name} after {unknown[0]} terms; "
                "calibrate with these stages"
            )
        stages = [of.stages.index(stage.n) for stage in seen.plan.stages]
        slope, offset, sd = (values[stages].to(seen.part.device) for values in (of.slope, of.offset, of.sd))
        gradient = None if of.gradient is None else floored(of.gradient.to(sd.device))
        margin = torch.as_tensor(self.margin(seen, sd, gradient), dtype=sd.dtype, device=sd.device)
        # Where the partial sum says nothing of the full one, no bound is low enough.
        never = (slope <= 0) | (margin == math.inf)
        bound = torch.where(never, -math.inf, -offset - margin * sd)
        slope = torch.where(never, 1.0, slope)
        shape = (len(stages), -1, *(1,) * seen.site.spatial_dims)
        return slope.to(seen.part.dtype).view(shape), bound.to(seen.part.dtype).view(shape)


class Calibrated(CalibratedTest):
    """Stop where a neuron is positive with a probability below ``tau``, in [0, 0.5]; 0 never stops."""

    tau_range = (0.0, 0.5)

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> float:
        return math.inf if seen.tau == 0 else -NormalDist().inv_cdf(seen.tau)


class Optimal(CalibratedTest):
    """Stop where the expected damage to the loss is worth the FLOPs that are left.

    The damage of setting a neuron to 0 is ``gradient * relu(z)^2 / 2``, with the mean squared gradient of the loss at
    its output (Fisher information).

    Args:
        lam: the price, expected loss per FLOP, at least 0; 0 never stops.
        ahead: weigh stopping now against going on to the next stage, where it may stop too; else against computing all
            the rest.
    """

    def __init__(
        self,
        lam: float,
        stages: Sequence[int] = STAGES,
        statistics: Mapping[str, SiteStatistics] | None = None,
        ahead: bool = True,
    ) -> None:
        super().__init__(None, stages, statistics)
        wanted = "a number, at least 0 (expected loss per FLOP; 1e-11 is a little)"
        self.lam, self.ahead = real(lam, "lam", wanted, lambda lam: 0 <= lam < math.inf), ahead

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            raise SettingError(f"Optimal: the statistics of {seen.site.name} lack gradients; calibrate with them")
        each = (torch.as_tensor(seen.plan.dense_flops - stage.flops) for stage in seen.plan.stages)
        left = torch.stack([flops.to(sd).expand(sd.shape[1]) for flops in each])
        if self.ahead:
            return -looking_ahead(gradient, sd, left, self.lam, self.overhead(0, seen.site))
        return -at_once(gradient, sd, left, self.lam)


class Oracle(Heuristic):
    """Stops exactly the negative neurons after the first stage, as if it knew their sign: the ceiling of any test."""

    needs_full = True

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.full is not None  # needs_full
        return seen.full <= 0
