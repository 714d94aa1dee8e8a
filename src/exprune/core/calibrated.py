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

from exprune.core.errors import SettingError
from exprune.core.heuristics import Heuristic, Prefix, Tau
from exprune.core.moments import SiteStatistics, floored
from exprune.core.sites import Site

STAGES = (32, 64, 96, 128, 192, 256)


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
        self.stages = tuple(stages)
        self.statistics = statistics
        self._bounds: dict[tuple, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor | float:
        """How many sd below 0 the expected z must lie, per output channel; infinite: never stop."""

    def order(self, site: Site) -> Tensor | None:
        return None if self.statistics is None or site.name not in self.statistics else self.statistics[site.name].order

    def stop(self, seen: Prefix) -> Tensor:
        slope, bound = self._line(seen)
        if seen.site.residual:
            return seen.s * slope + seen.r < bound
        return seen.s < (bound - seen.r) / slope

    def overhead(self, stage: int, site: Site) -> int:
        return 3 if site.residual else 1  # a comparison; with a residual slope * s + r is not known beforehand

    def _line(self, seen: Prefix) -> tuple[Tensor, Tensor]:
        key = (seen.site.name, seen.n, seen.s.dtype, seen.s.device)
        if key not in self._bounds:
            if self.statistics is None or seen.site.name not in self.statistics:
                raise SettingError(f"{type(self).__name__}: no statistics of site {seen.site.name}; calibrate first")
            of = self.statistics[seen.site.name]
            stage = of.stages.index(seen.n)
            slope, offset, sd = (values[stage].to(seen.s.device) for values in (of.slope, of.offset, of.sd))
            margin = torch.as_tensor(self.margin(seen, sd, of.gradient), dtype=sd.dtype, device=sd.device)
            # Where the partial sum says nothing of the full one, no bound is low enough.
            never = (slope <= 0) | (margin == math.inf)
            bound = torch.where(never, -math.inf, -offset - margin * sd)
            slope = torch.where(never, 1.0, slope)
            shape = (-1, 1, 1) if seen.site.kind == "conv2d" else (-1,)
            self._bounds[key] = tuple(values.to(seen.s.dtype).view(shape) for values in (slope, bound))
        return self._bounds[key]


class Calibrated(CalibratedTest):
    """Stop where a neuron is positive with a probability below ``tau``, in [0, 0.5]; 0 never stops."""

    tau_range = (0.0, 0.5)

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> float:
        return math.inf if seen.tau == 0 else NormalDist().inv_cdf(1 - seen.tau)


class Optimal(CalibratedTest):
    """Stop where the expected damage to the loss is worth the FLOPs that are left.

    The damage of setting a neuron to 0 is ``gradient * relu(z)^2 / 2``, with the mean squared gradient of the loss at
    its output (Fisher information).

    Args:
        lam: the price, expected loss per FLOP, at least 0; 0 never stops.
    """

    def __init__(
        self,
        lam: float,
        stages: Sequence[int] = STAGES,
        statistics: Mapping[str, SiteStatistics] | None = None,
    ) -> None:
        super().__init__(None, stages, statistics)
        if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 <= lam < math.inf:
            raise SettingError(f"lam={lam!r}: a number, at least 0 (expected loss per FLOP; 1e-11 is a little)")
        self.lam = lam

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            raise SettingError(f"Optimal: the statistics of {seen.site.name} lack gradients; calibrate with them")
        left = torch.as_tensor(seen.flops_left, dtype=torch.float64).to(sd.device).reshape(-1)
        return -inverse_half_moment(2 * self.lam * left / (floored(gradient.to(sd.device)) * sd**2))


class Oracle(Heuristic):
    """Stops exactly the negative neurons after the first stage, as if it knew their sign: the ceiling of any test."""

    needs_full = True

    def stop(self, seen: Prefix) -> Tensor:
        return seen.full <= 0


def half_moment(u: Tensor) -> Tensor:
    """E[relu(u + Normal(0, 1))^2] = (u^2 + 1) Phi(u) + u phi(u), increasing in u."""
    # Phi by erfcx, which keeps its relative precision far below 0, where the two summands all but cancel.
    tail = torch.special.erfcx(-u / math.sqrt(2)) / 2
    return torch.exp(-u * u / 2) * ((u * u + 1) * tail + u / math.sqrt(2 * math.pi))


def inverse_half_moment(values: Tensor) -> Tensor:
    """The u whose :func:`half_moment` is the value, in [-10, 10]; -inf below and +10 above. float64."""
    low, high = torch.full_like(values, -10.0), torch.full_like(values, 10.0)
    beyond = values < half_moment(low[:1])
    for _ in range(60):
        middle = (low + high) / 2
        above = half_moment(middle) > values
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(beyond, -math.inf, low)
