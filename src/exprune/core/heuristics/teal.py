"""TEAL: leaving out the inputs of a layer that are small, the training-free way that ours is compared with."""

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
    """Leave out the terms whose inputs are small, for all neurons alike and without looking at their sums.

    The rule of TEAL (Liu et al. 2024, arXiv 2408.14690) for Linear layers: an input is evaluated where |x| > t. Of a
    convolution a term's input is a position's patch of its channel, by its norm. It costs one comparison an input.

    With ``divide="greedy"`` the layers of a block share its budget. TEAL goes there in steps, each time to the layer
    that adds least to the measured error of the block's output. Here the error is estimated from what calibration
    measured: leaving out an input of size x adds ``x^2 / 2`` times the mean over the inputs of ``sum_j gradient_j
    w_ji^2``, to the loss, and errors add up. The division that leaves out the same FLOPs at the least error, at which
    such steps arrive, then has one price for all layers of a block, so that it is found at once.

    Args:
        tau: the share of a site's inputs that is left out, in [0, 1], by their quantile on the calibration inputs (in
            steps of 1/1024); 0 leaves out what is exactly zero. With a greedy division the share of a block's FLOPs.
        statistics: as of :class:`InputRule`; with gradients for a greedy division.
        divide: ``even``, each layer leaves out the same share; or ``greedy``.

    Raises:
        SettingError: another division; when the run begins, the statistics lack what it needs.
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
            raise SettingError(f"divide={divide!r} of {type(self).__name__}: {' or '.join(DIVISIONS)}")
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
        """The size up to which an input is left out."""
        if not tau:
            return 0.0
        sizes = self._sizes(site)
        return float(sizes[int(tau * (len(sizes) - 1))])

    def _divided(self, block: Sequence[Site], site: Site, tau: float) -> float:
        """Likewise, of one site of a block that leaves out so much of its FLOPs."""
        if not tau:
            return 0.0
        prices = {one.name: math.sqrt(self._price(one)) for one in block}
        sizes = torch.stack([self._sizes(one)[1:] * prices[one.name] for one in block])
        flops = torch.tensor([float(one.dense_flops * one.outputs) for one in block], dtype=sizes.dtype)
        shared = weighed_quantile(sizes.flatten(), flops.repeat_interleave(sizes.shape[1]), tau)
        return float(shared) / max(prices[site.name], torch.finfo(sizes.dtype).tiny)

    def _price(self, site: Site) -> float:
        """What leaving out an input of size 1 adds to the loss, for each FLOP that it saves, up to a factor."""
        of = (self.statistics or {}).get(site.name)
        if of is None or of.gradient is None:
            raise SettingError(f"{type(self).__name__}: no gradients of {site.name}, which divide=greedy needs")
        assert site.weight is not None  # else it has no statistics
        weight = site.weight.detach().flatten(1).double()
        damage = of.gradient.to(weight) @ weight.square()
        return float(damage.mean()) / (site.dense_flops * site.outputs)

    def _sizes(self, site: Site) -> Tensor:
        """(1025,): the quantiles of the sizes of its inputs."""
        of = (self.statistics or {}).get(site.name)
        if of is None or of.magnitudes is None:
            kind = type(self).__name__
            raise SettingError(f"{kind}: no magnitudes of {site.name}'s inputs; calibrate with order={BY_INPUT}")
        return of.magnitudes


def above(cut: float, site: Site) -> Choice:
    """Evaluate the inputs above a size, at one comparison an input."""
    return Choice(lambda energies, norms: energies > cut**2, site.terms)


def block_of(site: Site) -> str:
    """The block of a layer: its name up to the first number in it, as ``model.layers.3``; else the name."""
    parts = site.name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])
