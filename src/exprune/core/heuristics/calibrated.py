"""The calibrated significance test (docs/method.md, sections 8 and 10)."""

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
    """Stop a neuron if its probability of being positive is below ``tau``.

    The probability is computed from the partial sum and from calibration statistics, with normally distributed errors.
    Before an activation other than ReLU, a neuron stops if the probability that its output exceeds ``tolerance`` in
    absolute value is below ``tau``. A stopped neuron outputs 0.

    Args:
        tau: The probability, in [0, 0.5]; 0 never stops. One number, a list with one number per eligible site, or a
            mapping from site names (wildcards are allowed) to numbers.
        stages: How many terms are evaluated before each test, ascending. A site skips stages that exceed its number of
            terms. None uses the stages of the statistics.
        statistics: The statistics of each site, from a `Recorder`. None means that they are set before the run.
        tolerance: The largest absolute output that may be replaced by 0, above 0. None means that sites before other
            activations than ReLU run dense.

    Raises:
        SettingError: If an argument is out of range, or if the statistics were measured at other stages.
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
            wanted = "a number above 0 (the largest output that may be replaced by 0), or null"
            tolerance = real(tolerance, "tolerance", wanted, lambda value: 0 < value < math.inf, "Calibrated")
        self.tolerance = tolerance

    def refuses(self, site: Site) -> str | None:
        if site.activation is None or site.activation.rectifies or self.tolerance is not None:
            return None
        return f"feeds {site.activation.name}, not a ReLU: Calibrated needs a tolerance for it, such as tolerance=0.1"

    def bounds(
        self, site: Site, plan: Plan, tau: float | None, sd: Tensor, gradient: Tensor | None, widths: Tensor
    ) -> dict[str, Tensor | None]:
        wide = widths[:, None, None] * sd
        if not tau:
            return {"below": torch.full_like(wide, -math.inf)}
        if site.rectified:
            return {"below": wide * NormalDist().inv_cdf(tau)}
        assert site.activation is not None and self.tolerance is not None  # refuses() ensures it
        return {"below": tolerated(site.activation, wide, self.tolerance, tau)}
