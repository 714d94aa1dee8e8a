"""Optimal stopping: the expected damage to the loss against the FLOPs that are left (docs/method.md, section 8)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from exprune.core.calibration.lines import SiteStatistics
from exprune.core.calls.activations import Activation
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.calibrated_test import CalibratedTest
from exprune.core.heuristics.elementwise import thresholds, zero_thresholds
from exprune.core.heuristics.heuristic import Prefix
from exprune.core.heuristics.stopping import (
    Moment,
    at_once,
    between,
    half_moment,
    looking_ahead,
    predicted_moment,
    unit_moment,
    without_width,
)
from exprune.core.settings import real


class Optimal(CalibratedTest):
    """Stop where the expected damage to the loss is worth the FLOPs that are left.

    The damage of an output that is wrong by e is ``gradient * e^2 / 2``, with the mean squared gradient of the loss at
    the neuron's output (Fisher information). Before an activation that is no ReLU, what is left to be spent is
    also what an output of exactly 0 spares elsewhere: its column of the layer that reads it, its row of one that it
    gates.

    Args:
        lam: the price, expected loss per FLOP, at least 0; 0 never stops.
        ahead: weigh stopping now against going on to the next stage, where it may stop too; else against computing all
            the rest.
        predict: a neuron that stops outputs what its activation makes of its expected value, so that those that are
            likely positive stop as well, and layers without an activation can be sites; else it outputs 0.
    """

    def __init__(
        self,
        lam: float,
        stages: Sequence[int] | None = None,
        statistics: Mapping[str, SiteStatistics] | None = None,
        ahead: bool = True,
        predict: bool = False,
    ) -> None:
        super().__init__(None, stages, statistics)
        wanted = "a number, at least 0 (expected loss per FLOP; 1e-11 is a little)"
        self.lam, self.ahead = real(lam, "lam", wanted, lambda lam: 0 <= lam < math.inf), ahead
        if not isinstance(predict, bool):
            raise SettingError(f"predict={predict!r} of Optimal: true or false")
        self.predicts = predict

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        return self._margin(seen, sd, gradient, self.lam)

    def margins(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor:
        # Residuals w times as wide make the same stopping problem at the price lam / w^2. Solved at powers of 4.
        moment = self._moment(seen)
        if not self.lam or moment is unit_moment:
            return super().margins(seen, sd, gradient, widths)
        level = math.log2(self.lam) / 2 - torch.log2(widths)
        lower = level.floor()
        known = {k: self._solved(seen, sd, gradient, k) for k in range(int(lower.min()), int(lower.max()) + 2)}
        low, high = (torch.stack([known[int(k)] for k in levels]) for levels in (lower, lower + 1))
        known_rows = torch.full_like(low[:1], -without_width(moment))
        return torch.cat([known_rows, -between(-low, -high, (level - lower).to(sd).view(-1, 1, 1), moment)])

    def threshold(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        if (activation := elementwise(seen.site)) is None:
            return super().threshold(seen, sd, gradient)
        gradient, left = self._worth(seen, sd, gradient)
        spared, overhead = seen.site.worth_of_zero, self._another_test(seen.site)
        return thresholds(
            activation, gradient, sd, left, spared, self.lam, overhead, ahead=self.ahead, predict=self.predicts
        )

    def thresholds(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor:
        if elementwise(seen.site) is None:
            return super().thresholds(seen, sd, gradient, widths)
        if not self.lam:
            return sd.new_full((len(widths) + 1, *sd.shape), -math.inf)
        of_widths = _between(lambda width: self.threshold(seen, sd * width, gradient), widths)
        # Of a row that is known nothing is left to be computed here; a prediction is exact.
        nothing_left = torch.full_like(of_widths[:1], math.inf) if self.predicts else of_widths[:1]
        return torch.cat([nothing_left, of_widths])

    def zero_thresholds(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, widths: Tensor) -> Tensor | None:
        if (solved := self._zero(seen, sd, gradient)) is None:
            return None
        of_widths = _between(solved, widths)
        return torch.cat([of_widths[:1], of_widths])

    def zero_threshold(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor | None:
        solved = self._zero(seen, sd, gradient)
        return None if solved is None else solved(1.0)

    def _zero(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Callable[[float], Tensor] | None:
        """Below which expectation what stops outputs 0, where ``sd`` is so many times as wide; None: a ReLU tells."""
        activation = elementwise(seen.site)
        if not self.predicts or activation is None:
            return None
        of, _ = self._worth(seen, sd, gradient)
        return lambda width: zero_thresholds(activation, of, sd * width, seen.site.worth_of_zero, self.lam)

    def _solved(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, level: int) -> Tensor:
        """The margins at the price 4^level. Other prices ask for the same ones, so they stay with the statistics."""
        assert self.statistics is not None
        kept = self.statistics[seen.site.name].kept
        flops = seen.plan.dense_flops, *(stage.flops for stage in seen.plan.stages)
        spent = tuple(tuple(of.tolist()) if isinstance(of, Tensor) else of for of in flops)
        key = (level, self._moment(seen), self.ahead, self._another_test(seen.site), spent)
        if key not in kept:
            kept[key] = self._margin(seen, sd, gradient, 4.0**level)
        return kept[key].to(sd)

    def _margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None, lam: float) -> Tensor:
        gradient, left = self._worth(seen, sd, gradient)
        moment = self._moment(seen)
        if self.ahead:
            return -looking_ahead(gradient, sd, left, lam, self._another_test(seen.site), moment)
        return -at_once(gradient, sd, left, lam, moment)

    def _another_test(self, site: Site) -> int:
        """FLOPs of going on to one more test; the first may be charged with what is worked out once."""
        return self.overhead(1, site)

    def _worth(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean squared gradients, (outputs,), and the FLOPs of a neuron that are left, (stages, outputs)."""
        if gradient is None:
            raise SettingError(f"Optimal: the statistics of {seen.site.name} lack gradients; calibrate with them")
        each = (torch.as_tensor(seen.plan.dense_flops - stage.flops) for stage in seen.plan.stages)
        return gradient, torch.stack([flops.to(sd).expand(sd.shape[1]) for flops in each])

    def _moment(self, seen: Prefix) -> Moment:
        """The expected squared error of a neuron that is stopped, in units of its variance."""
        if not self.predicts:
            return half_moment
        return predicted_moment if seen.site.before_relu else unit_moment


def elementwise(site: Site) -> Activation | None:
    """The activation that is no ReLU before which a site is tested; None of others."""
    return site.activation if site.before_activation and not site.relu else None


def _between(solved: Callable[[float], Tensor], widths: Tensor) -> Tensor:
    """Thresholds at these widths, 2^-4 to 2^4, from those at the powers of 2: (widths, stages, outputs)."""
    known = torch.stack([solved(2.0**power) for power in range(-4, 5)])
    at = torch.log2(widths).clamp(-4, 4) + 4
    first = at.long().clamp(max=len(known) - 2)
    low, high = known[first], known[first + 1]
    between = torch.lerp(low, high, (at - first).to(known).view(-1, 1, 1))
    # Beside never or always: the more cautious of the two.
    return torch.where(low.isfinite() & high.isfinite(), between, low.minimum(high))
