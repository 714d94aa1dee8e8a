"""Optimal stopping: the expected damage to the loss against the FLOPs that are left (docs/method.md, section 8)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.stopping import Problem, stop_below, stop_narrower, zero_below
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.calibrated_test import CalibratedTest
from exprune.core.settings import real

_NARROWEST = 128  # what a neuron's deviation may come to, of that after the first stage


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

    def bounds(
        self, site: Site, plan: Plan, tau: float | None, sd: Tensor, gradient: Tensor | None, widths: Tensor
    ) -> dict[str, Tensor | None]:
        if gradient is None:
            raise SettingError(f"Optimal: the statistics of {site.name} lack gradients; calibrate with them")
        if not self.lam:
            return {"below": sd.new_full((len(widths), *sd.shape), -math.inf)}
        # A neuron that is known beforehand, as where its other inputs are dead: its course stays on the solver's grid.
        sd = sd.maximum(sd[0] / _NARROWEST)
        each = (torch.as_tensor(plan.dense_flops - stage.flops) for stage in plan.stages)
        left = torch.stack([flops.to(sd).expand(sd.shape[1]) for flops in each])
        activation = site.activation if site.before_activation else None
        # The first test may be charged with what is worked out once.
        costs = 0 if site.before_relu else site.worth_of_zero, self.overhead(1, site)
        problem = Problem(activation, gradient, sd, left, *costs, self.lam, self.ahead, self.predicts)
        if activation is None:
            narrow = stop_narrower(problem)
            if plan.by_input:
                return {"below": None, "narrow": narrow}
            return {"below": torch.where(narrow > 1, math.inf, -math.inf)[None]}
        some = widths[widths > 0]
        below = stop_below(problem, some)
        zero = zero_below(problem, some) if self.predicts and not activation.relu else None
        if len(some) < len(widths):  # of a row that is known: a prediction is exact
            known = torch.full_like(below[:1], math.inf) if self.predicts else below[:1]
            known = torch.zeros_like(known) if activation.relu and not self.predicts else known
            below = torch.cat([known, below])
            zero = None if zero is None else torch.cat([zero[:1], zero])
        return {"below": below, "zero_below": zero}
