"""The oracle: what any test could stop at most (docs/method.md, sections 8 and 10)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.lines import SiteStatistics, floored
from exprune.core.decisions.prefix import Prefix
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic
from exprune.core.settings import real


class Oracle(Heuristic):
    """Stops after the first stage what is not worth the rest, as if it knew it: the ceiling of any test.

    Before a ReLU exactly the negative neurons. Before another activation those whose damage, as of
    :class:`~exprune.core.Optimal`, is worth less than the FLOPs that are left, where a price is given.

    Args:
        n: the terms evaluated before it looks.
        order: in which; see :func:`~exprune.core.term_order`. ``model`` and ``input`` need no statistics.
        lam: the price, expected loss per FLOP; None: there are only ReLUs, and others run dense.
        statistics: by site, of the mean squared gradients; needed with ``lam``.
    """

    needs_full = True
    gain_ratio = 1000.0

    def __init__(
        self,
        n: int = 16,
        order: str = "model",
        lam: float | None = None,
        statistics: Mapping[str, SiteStatistics] | None = None,
    ) -> None:
        super().__init__(None, n)
        if lam is not None:
            wanted = "a number, at least 0 (expected loss per FLOP), or null"
            lam = real(lam, "lam", wanted, lambda value: 0 <= value < math.inf, "Oracle")
        self.lam, self.statistics, self.needs_statistics = lam, statistics, lam is not None
        if order not in ("model", BY_INPUT):
            raise SettingError(
                f"order={order!r} of Oracle: model or {BY_INPUT}; which terms it has seen is all the same"
            )
        self._order = order

    def order(self, site: Site) -> str | None:
        return BY_INPUT if self._order == BY_INPUT else None

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.full is not None  # needs_full
        activation = seen.site.activation
        if activation is None or activation.rectifies:
            return seen.full <= 0
        assert self.lam is not None  # else it refuses
        gradient = None if self.statistics is None else self.statistics[seen.site.name].gradient
        if gradient is None:
            raise SettingError(
                f"Oracle: no gradients of {seen.site.name}, which it needs with lam; calibrate with them"
            )
        left = torch.as_tensor(seen.plan.dense_flops - seen.plan.stages[seen.stage].flops)
        left = left + seen.site.worth_of_zero
        worth = (2 * self.lam * left / floored(gradient)).sqrt().to(seen.full)
        shape = (-1, *(1,) * seen.spatial_dims)
        return activation(seen.full).abs() < worth.view(shape)

    def refuses(self, site: Site) -> str | None:
        if site.activation is None or site.activation.rectifies or self.lam is not None:
            return None
        return f"feeds {site.activation.name}, no ReLU: Oracle needs a price for it, such as lam=1e-10"
