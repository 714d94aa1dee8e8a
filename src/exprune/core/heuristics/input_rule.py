"""Base class of the rules that select inputs of a layer, without looking at its sums (docs/method.md, section 8)."""

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
    """Base class of rules that evaluate only some inputs of a layer, the same for all its neurons.

    A subclass implements `choose`. A row that skips nothing but zeros keeps the model's own outputs.

    Args:
        tau: The share of the inputs to skip, in [0, 1]; see `Heuristic` for lists and mappings.
        statistics: The statistics of each site, from a `Recorder` with the order ``"input"``. None means that they are
            set before the run, if the rule needs them.

    Raises:
        SettingError: If ``tau`` is out of range.
    """

    tau_range = (0.0, 1.0)
    gain_ratio = 1000.0
    predicts = True

    def __init__(self, tau: Tau | None = None, statistics: Mapping[str, SiteStatistics] | None = None) -> None:
        super().__init__(tau, n=1)
        self.statistics = statistics

    @abstractmethod
    def choose(self, site: Site, tau: float) -> Choice:
        """Choose which inputs of a site are evaluated.

        Args:
            site: The site.
            tau: Its share of inputs to skip.

        Returns:
            The rule, and what it costs.
        """

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        return {site.name: self.choose(site, taus[site.name]) for site in sites if site.name in taus}

    def order(self, site: Site) -> str:
        return BY_INPUT

    def refuses(self, site: Site) -> str | None:
        return None

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.rest is not None  # it is set in the order of each input
        return (seen.rest > 0).expand_as(seen.s)

    def prediction(self, seen: Prefix) -> Tensor:
        return seen.s + seen.r

    def overhead(self, stage: int, site: Site) -> int:
        return 0  # the cost of the selection is counted per row


def nonzero(energies: Tensor, norms: Tensor) -> Tensor:
    """Keep all inputs that are not exactly zero."""
    return energies != 0


def largest(scores: Tensor, count: int) -> Tensor:
    """A bool mask (R, N) of the ``count`` largest scores in each row of ``scores`` (R, N)."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(1, scores.topk(count, dim=1).indices, True)
