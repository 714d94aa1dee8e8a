"""Evaluating the largest inputs of every row: top-k, WINA, R-Sparse."""

from collections.abc import Mapping

import torch
from torch import Tensor

from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.choice import Choice
from exprune.core.discovery.sites import Site
from exprune.core.heuristics.heuristic import Tau
from exprune.core.heuristics.input_rule import InputRule, largest, nonzero
from exprune.core.settings import whole


class TopK(InputRule):
    """Of every row (of a convolution, position) evaluate the k inputs that are largest, ``k = (1 - tau) N`` rounded.

    The rule of dynamic input pruning (DIP, Federici et al. 2024, arXiv 2412.01380), without its cache. Charged is the
    cheapest selection known, ``N + min(k, N - k)`` comparisons a row (expected, Floyd and Rivest 1975); where k = N
    nothing is selected. It needs no calibration.

    Args:
        tau: the share of a row's inputs that is left out, in [0, 1].
    """

    def choose(self, site: Site, tau: float) -> Choice:
        kept = round((1 - tau) * site.terms)
        if kept == site.terms:
            return Choice(nonzero, 0)
        return Choice(lambda energies, norms: largest(self.score(energies, norms), kept), self.flops(site, kept))

    def score(self, energies: Tensor, norms: Tensor) -> Tensor:
        """By what inputs are compared, (R, N), of what :class:`Choice` says."""
        return energies

    def flops(self, site: Site, kept: int) -> int:
        """FLOPs of choosing so many inputs of a row."""
        return site.terms + min(kept, site.terms - kept)


class Wina(TopK):
    """As :class:`TopK`, of ``|x_i| n_i`` with the norm n_i of the input's weights over all outputs.

    The rule of WINA (Chen et al. 2025, arXiv 2505.19427) without its rotation of the residual stream, which makes the
    columns of some matrices orthogonal and costs two more products with matrices of d x d a layer. N products a row are
    charged beside the selection.
    """

    def score(self, energies: Tensor, norms: Tensor) -> Tensor:
        return energies * norms

    def flops(self, site: Site, kept: int) -> int:
        return site.terms + super().flops(site, kept)


class RSparse(Wina):
    """As :class:`Wina`, and the other inputs go through the best approximation of the weights of a low rank.

    ``y = W (m x) + U_r V_r ((1 - m) x)``, the rule of R-Sparse (Zhang et al. 2025, arXiv 2504.19449) with one rank and
    one share for all layers. The singular vectors are worked out once, before the run. ``2 r (K N + outputs)`` FLOPs a
    row are charged beside WINA's.

    Args:
        tau: the share of a row's inputs that goes through the approximation, in [0, 1].
        rank: r, at least 1; a layer of fewer inputs or outputs has so many.

    Raises:
        SettingError: the rank is none.
    """

    def __init__(
        self, tau: Tau | None = None, rank: int = 16, statistics: Mapping[str, SiteStatistics] | None = None
    ) -> None:
        super().__init__(tau, statistics)
        self.rank = whole(rank, "rank", "a whole number, at least 1", lambda rank: rank >= 1, type(self).__name__)

    def choose(self, site: Site, tau: float) -> Choice:
        choice = super().choose(site, tau)
        if not choice.flops:
            return choice
        basis = _directions(site, self.rank)
        inputs, rank = basis.shape
        return Choice(choice.keep, choice.flops + 2 * rank * (inputs + site.outputs), basis)


def _directions(site: Site, rank: int) -> Tensor:
    """(K * N, rank): the directions of its inputs that its weights heed most, orthonormal."""
    assert site.weight is not None  # of a site there is one
    weight = site.weight.detach().flatten(2) if site.spatial_dims else site.weight.detach()[..., None]
    matrix = weight.permute(2, 1, 0).flatten(0, 1)
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    vectors: Tensor = torch.linalg.svd(precise, full_matrices=False).U
    return vectors[:, :rank].contiguous()
