"""TEAL: skip small inputs of a layer. It is a training-free baseline for our tests."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.histogram import weighed_quantile
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.choice import Choice
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Tau
from exprune.core.heuristics.input_rule import InputRule

DIVISIONS = ("even", "greedy")


class Teal(InputRule):
    """TEAL: skip the terms whose inputs are small, the same for all neurons and without looking at their sums.

    This is the rule of TEAL (Liu et al. 2024, arXiv 2408.14690) for Linear layers: an input x is evaluated if |x| > t.
    In a convolution, the input of a term is the patch of a channel at a position, measured by its norm. The rule costs
    one comparison per input.

    With ``divide="greedy"``, the layers of a block share a budget. TEAL assigns it in small steps, each to the layer
    that adds least to the measured error of the block's output. Here the error is estimated from the calibration:
    skipping an input of size x adds ``x^2 / 2`` times the mean over the inputs of ``sum_j gradient_j w_ji^2`` to the
    loss, and errors add up. Such steps lead to the division that skips the same FLOPs with the least error. This
    division has a single price for all layers of a block, so it is computed directly.

    Args:
        tau: The share of a site's inputs to skip, in [0, 1]. The threshold is the corresponding quantile on the
            calibration inputs (in steps of 1/1024). 0 skips exact zeros only. With ``divide="greedy"``, ``tau`` is the
            share of a block's FLOPs.
        statistics: The statistics of each site, from a `Recorder` with the order ``"input"``; with gradients if
            ``divide="greedy"``.
        divide: ``"even"`` gives all layers the same share; ``"greedy"`` divides the budget of a block.

    Raises:
        SettingError: If an argument is out of range. When the run begins, if the statistics lack what is needed.
    """

    needs_statistics = True

    def __init__(
        self,
        tau: Tau | None = None,
        statistics: Mapping[str, SiteStatistics] | None = None,
        divide: str = "even",
    ) -> None:
        super().__init__(tau, statistics)
        if divide not in DIVISIONS:
            raise SettingError(f"divide={divide!r} of {type(self).__name__}: must be {' or '.join(DIVISIONS)}")
        self.divide = divide

    def choose(self, site: Site, tau: float) -> Choice:
        return above(self.cut(site, tau), site)

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        if self.divide == "even":
            return super().choices(sites, taus)
        pruned, found = [site for site in sites if site.name in taus], {}
        for _, group in itertools.groupby(sorted(pruned, key=block_of), key=block_of):
            block = list(group)
            for site in block:
                found[site.name] = above(self._divided(block, site, taus[site.name]), site)
        return found

    def cut(self, site: Site, tau: float) -> float:
        """The threshold up to which inputs are skipped."""
        if not tau:
            return 0.0
        sizes = self._sizes(site)
        return float(sizes[int(tau * (len(sizes) - 1))])

    def _divided(self, block: Sequence[Site], site: Site, tau: float) -> float:
        """The threshold of one site, for a block that skips the share ``tau`` of its FLOPs."""
        if not tau:
            return 0.0
        prices = {one.name: math.sqrt(self._price(one)) for one in block}
        sizes = torch.stack([self._sizes(one)[1:] * prices[one.name] for one in block])
        flops = torch.tensor([float(one.dense_flops * one.outputs) for one in block], dtype=sizes.dtype)
        shared = weighed_quantile(sizes.flatten(), flops.repeat_interleave(sizes.shape[1]), tau)
        return float(shared) / max(prices[site.name], torch.finfo(sizes.dtype).tiny)

    def _price(self, site: Site) -> float:
        """The damage of skipping an input of size 1 per FLOP saved, up to a constant factor."""
        of = (self.statistics or {}).get(site.name)
        if of is None or of.gradient is None:
            raise SettingError(
                f"{type(self).__name__}: the statistics of {site.name} have no gradients, which divide=greedy needs"
            )
        assert site.weight is not None  # a site with statistics has one
        weight = site.weight.detach().flatten(1).double()
        damage = of.gradient.to(weight) @ weight.square()
        return float(damage.mean()) / (site.dense_flops * site.outputs)

    def _sizes(self, site: Site) -> Tensor:
        """The quantiles of the sizes of the site's inputs (1025,)."""
        of = (self.statistics or {}).get(site.name)
        if of is None or of.magnitudes is None:
            kind = type(self).__name__
            raise SettingError(f"{kind}: no magnitudes of {site.name}'s inputs; calibrate with order={BY_INPUT}")
        return of.magnitudes


def above(cut: float, site: Site) -> Choice:
    """Evaluate the inputs above ``cut``, at one comparison per input."""
    return Choice(lambda energies, norms: energies > cut**2, site.terms)


def block_of(site: Site) -> str:
    """The block of a layer: its name up to the first number, such as ``model.layers.3``; without a number, the name."""
    parts = site.name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])
