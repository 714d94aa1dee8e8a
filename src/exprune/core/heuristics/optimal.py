"""Optimal stopping: weigh the expected damage to the loss against the remaining FLOPs (docs/method.md, section 8)."""

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

_NARROWEST = 128  # a neuron's standard deviation is taken to shrink by at most this factor after the first stage


class Optimal(CalibratedTest):
    """Stop a neuron if the expected damage to the loss is worth less than the FLOPs that stopping saves.

    The damage of an output error e is estimated as ``gradient * e^2 / 2``, where ``gradient`` is the mean squared
    gradient of the loss at the neuron's output (Fisher information). Before an activation other than ReLU, an output of
    exactly 0 also saves FLOPs in other layers: its column in the layer that reads it, and its row in a layer that it
    gates.

    Args:
        lam: The price of a FLOP in units of loss, at least 0; 0 never stops. A higher price prunes more.
        stages: How many terms are evaluated before each test, ascending. None uses the stages of the statistics.
        statistics: The statistics of each site with gradients, from a `Recorder`. None means that they are set before
            the run.
        ahead: Compare stopping now with continuing to the next stage, where the neuron may stop too. Otherwise stopping
            now is compared with computing all remaining terms.
        predict: A stopped neuron outputs the activation of its expected value instead of 0. Then neurons that are
            probably positive can stop too, and layers without an activation can be pruned.

    Raises:
        SettingError: If an argument is out of range, or if the statistics were measured at other stages. When the run
            begins, if the statistics lack gradients.
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
        wanted = "a number, at least 0 (the price of a FLOP in units of loss; 1e-11 is low)"
        self.lam, self.ahead = real(lam, "lam", wanted, lambda lam: 0 <= lam < math.inf), ahead
        if not isinstance(predict, bool):
            raise SettingError(f"predict={predict!r} of Optimal: must be true or false")
        self.predicts = predict

    def bounds(
        self, site: Site, plan: Plan, tau: float | None, sd: Tensor, gradient: Tensor | None, widths: Tensor
    ) -> dict[str, Tensor | None]:
        if gradient is None:
            raise SettingError(f"Optimal: the statistics of {site.name} lack gradients; calibrate with them")
        if not self.lam:
            return {"below": sd.new_full((len(widths), *sd.shape), -math.inf)}
        # A neuron may be known early, for example if its other inputs are dead. Keep its course within the solver's
        # grid.
        sd = sd.maximum(sd[0] / _NARROWEST)
        each = (torch.as_tensor(plan.dense_flops - stage.flops) for stage in plan.stages)
        left = torch.stack([flops.to(sd).expand(sd.shape[1]) for flops in each])
        activation = site.activation if site.before_activation else None
        # The first test may include a cost that is paid only once.
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
        if len(some) < len(widths):  # a row of width 0 is known, and its prediction is exact
            known = torch.full_like(below[:1], math.inf) if self.predicts else below[:1]
            known = torch.zeros_like(known) if activation.relu and not self.predicts else known
            below = torch.cat([known, below])
            zero = None if zero is None else torch.cat([zero[:1], zero])
        return {"below": below, "zero_below": zero}
