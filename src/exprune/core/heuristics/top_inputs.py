"""Rules that evaluate the largest inputs of every row: top-k, WINA, R-Sparse."""

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
    """Top-k: evaluate the k largest inputs of every row (of a convolution, position), k = (1 - tau) N rounded.

    This is the rule of dynamic input pruning (DIP, Federici et al. 2024, arXiv 2412.01380), without its cache. The cost
    is that of the cheapest known selection, ``N + min(k, N - k)`` comparisons per row (expected, Floyd and Rivest
    1975); for k = N nothing is selected. The rule needs no calibration.

    Args:
        tau: The share of a row's inputs to skip, in [0, 1]; see `Heuristic` for lists and mappings.
        statistics: Not used.

    Raises:
        SettingError: If ``tau`` is out of range.
    """

    def choose(self, site: Site, tau: float) -> Choice:
        kept = round((1 - tau) * site.terms)
        if kept == site.terms:
            return Choice(nonzero, 0)
        return Choice(lambda energies, norms: largest(self.score(energies, norms), kept), self.flops(site, kept))

    def score(self, energies: Tensor, norms: Tensor) -> Tensor:
        """The score (R, N) by which inputs are ranked; the arguments are those of `Choice.keep`."""
        return energies

    def flops(self, site: Site, kept: int) -> int:
        """FLOPs of selecting ``kept`` inputs of a row."""
        return site.terms + min(kept, site.terms - kept)


class Wina(TopK):
    """WINA: like `TopK`, but rank inputs by ``|x_i| n_i``, with the norm n_i of the input's weights over all outputs.

    This is the rule of WINA (Chen et al. 2025, arXiv 2505.19427) without its rotation of the residual stream. The
    rotation makes the columns of some matrices orthogonal, and costs two more products with d x d matrices per layer. N
    products per row are counted in addition to the selection.

    Args:
        tau: The share of a row's inputs to skip, in [0, 1].
        statistics: Not used.

    Raises:
        SettingError: If ``tau`` is out of range.
    """

    def score(self, energies: Tensor, norms: Tensor) -> Tensor:
        return energies * norms

    def flops(self, site: Site, kept: int) -> int:
        return site.terms + super().flops(site, kept)


class RSparse(Wina):
    """R-Sparse: like `Wina`, but the other inputs go through a low-rank approximation of the weights.

    ``y = W (m x) + U_r V_r ((1 - m) x)`` is the rule of R-Sparse (Zhang et al. 2025, arXiv 2504.19449), with one rank
    and one share for all layers. The singular vectors are computed once, before the run. ``2 r (K N + outputs)`` FLOPs
    per row are counted in addition to those of WINA.

    Args:
        tau: The share of a row's inputs that go through the approximation, in [0, 1].
        rank: The rank r, at least 1. It is limited to the layer's inputs and outputs.
        statistics: Not used.

    Raises:
        SettingError: If ``tau`` or ``rank`` is out of range.
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
    """The leading left singular vectors of a site's weights (K * N, rank): orthonormal directions of its inputs."""
    assert site.weight is not None  # every site has one
    weight = site.weight.detach().flatten(2) if site.spatial_dims else site.weight.detach()[..., None]
    matrix = weight.permute(2, 1, 0).flatten(0, 1)
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    vectors: Tensor = torch.linalg.svd(precise, full_matrices=False).U
    return vectors[:, :rank].contiguous()
