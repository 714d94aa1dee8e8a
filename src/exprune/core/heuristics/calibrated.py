"""The calibrated test of significance (docs/method.md, sections 8 and 10)."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.stopping import tolerated
from exprune.core.discovery.sites import Site
from exprune.core.heuristics.calibrated_test import CalibratedTest
from exprune.core.heuristics.heuristic import Tau
from exprune.core.settings import real


class Calibrated(CalibratedTest):
    """Stop where a neuron is positive with a probability below ``tau``, in [0, 0.5]; 0 never stops.

    Before an activation that is no ReLU: where what it outputs is larger than ``tolerance``, in absolute value, with a
    probability below ``tau``.

    Args:
        tau, stages, statistics: as of :class:`CalibratedTest`.
        tolerance: above 0; None: there are only ReLUs, and others run dense.
    """

    tau_range = (0.0, 0.5)

    def __init__(
        self,
        tau: Tau | None = None,
        stages: Sequence[int] | None = None,
        statistics: Mapping[str, SiteStatistics] | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(tau, stages, statistics)
        if tolerance is not None:
            wanted = "a number above 0 (how large an output may be left out), or null"
            tolerance = real(tolerance, "tolerance", wanted, lambda value: 0 < value < math.inf, "Calibrated")
        self.tolerance = tolerance

    def refuses(self, site: Site) -> str | None:
        if site.activation is None or site.activation.rectifies or self.tolerance is not None:
            return None
        return f"feeds {site.activation.name}, no ReLU: Calibrated needs a tolerance for it, such as tolerance=0.1"

    def bounds(
        self, site: Site, plan: Plan, tau: float | None, sd: Tensor, gradient: Tensor | None, widths: Tensor
    ) -> dict[str, Tensor | None]:
        wide = widths[:, None, None] * sd
        if not tau:
            return {"below": torch.full_like(wide, -math.inf)}
        if site.rectified:
            return {"below": wide * NormalDist().inv_cdf(tau)}
        assert site.activation is not None and self.tolerance is not None  # else it refuses
        return {"below": tolerated(site.activation, wide, self.tolerance, tau)}
