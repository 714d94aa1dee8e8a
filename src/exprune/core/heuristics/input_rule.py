"""What the rules share that choose inputs of a layer, and test none of its sums (docs/method.md, section 8)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.prefix import Prefix
from exprune.core.discovery.sites import Site
from exprune.core.heuristics.heuristic import Heuristic, Tau


class InputRule(Heuristic, ABC):
    """Evaluate, for all neurons of a layer alike, the terms of some of its inputs; a subclass says which.

    A row of which nothing is left out but zeros keeps the model's own outputs.

    Args:
        tau: the share that is left out, in [0, 1].
        statistics: by site, from a :class:`~exprune.core.Recorder` with the order ``"input"``; None: to be set before
            the run, where the rule needs them.
    """

    tau_range = (0.0, 1.0)
    gain_ratio = 1000.0
    predicts = True

    def __init__(self, tau: Tau | None = None, statistics: Mapping[str, SiteStatistics] | None = None) -> None:
        super().__init__(tau, n=1)
        self.statistics = statistics

    @abstractmethod
    def choose(self, site: Site, tau: float) -> Choice:
        """Which inputs a site evaluates, and what choosing costs."""

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        return {site.name: self.choose(site, taus[site.name]) for site in sites if site.name in taus}

    def order(self, site: Site) -> str:
        return BY_INPUT

    def refuses(self, site: Site) -> str | None:
        return None

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.rest is not None  # in the order of each input
        return (seen.rest > 0).expand_as(seen.s)

    def prediction(self, seen: Prefix) -> Tensor:
        return seen.s + seen.r

    def overhead(self, stage: int, site: Site) -> int:
        return 0  # what choosing costs is counted by row


def nonzero(energies: Tensor, norms: Tensor) -> Tensor:
    """Keeps all inputs that are not exactly zero."""
    return energies != 0


def largest(scores: Tensor, count: int) -> Tensor:
    """(R, N) bool: so many of each row, of (R, N) scores the largest."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(1, scores.topk(count, dim=1).indices, True)
