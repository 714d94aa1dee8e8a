"""Leaving out what is small in a layer's input: the training-free way that ours is compared with."""

from collections.abc import Mapping

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.prefix import Prefix
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Tau


class Magnitude(Heuristic):
    """Leave out the terms whose inputs are small, for all neurons alike and without looking at their sums.

    The rule of TEAL (Liu et al. 2024, arXiv 2408.14690) for Linear layers; of a convolution a term's input is a
    position's patch of its channel, by its norm. docs/method.md, section 8.

    Args:
        tau: the share of a site's inputs that is left out, in [0, 1], by their quantile on the calibration inputs (in
            steps of 1/1024); 0 leaves out what is exactly zero.
        statistics: by site, from a :class:`~exprune.core.Recorder` with the order ``"input"``; None: to be set before
            the run.
    """

    tau_range = (0.0, 1.0)
    needs_statistics = True
    gain_ratio = 1000.0
    predicts = True

    def __init__(self, tau: Tau | None = None, statistics: Mapping[str, SiteStatistics] | None = None) -> None:
        super().__init__(tau, n=1)
        self.statistics = statistics

    def order(self, site: Site) -> str:
        return BY_INPUT

    def refuses(self, site: Site) -> None:
        return None

    def cut(self, site: Site, tau: float) -> float:
        if not tau:
            return 0.0
        of = (self.statistics or {}).get(site.name)
        if of is None or of.magnitudes is None:
            raise SettingError(f"Magnitude: no magnitudes of {site.name}'s inputs; calibrate with order={BY_INPUT}")
        return float(of.magnitudes[int(tau * (len(of.magnitudes) - 1))])

    def stop(self, seen: Prefix) -> Tensor:
        return torch.ones_like(seen.s, dtype=torch.bool)

    def prediction(self, seen: Prefix) -> Tensor:
        return seen.s + seen.r

    def overhead(self, stage: int, site: Site) -> int:
        return 0  # its comparisons are counted by row
