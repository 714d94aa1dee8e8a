"""The oracle: an upper limit for what any test can stop (docs/method.md, sections 8 and 10)."""

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
    """Stop after the first stage with knowledge of the true outputs: an upper limit for any test.

    Before a ReLU, exactly the negative neurons stop. Before another activation, neurons stop if their damage (as
    defined for `Optimal`) is worth less than the remaining FLOPs; this requires a price.

    Args:
        n: The number of terms evaluated before the stop.
        order: ``"model"`` or ``"input"``, see `term_order`; neither needs statistics.
        lam: The price of a FLOP in units of loss. None means that sites before other activations than ReLU run dense.
        statistics: The statistics of each site with mean squared gradients, from a `Recorder`; needed with ``lam``.

    Raises:
        SettingError: If an argument is out of range. When the run begins, if gradients are needed and missing.
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
            wanted = "a number, at least 0 (the price of a FLOP in units of loss), or null"
            lam = real(lam, "lam", wanted, lambda value: 0 <= value < math.inf, "Oracle")
        self.lam, self.statistics, self.needs_statistics = lam, statistics, lam is not None
        if order not in ("model", BY_INPUT):
            raise SettingError(
                f"order={order!r} of Oracle: must be model or {BY_INPUT}; no other order makes a difference"
            )
        self._order = order

    def order(self, site: Site) -> str | None:
        return BY_INPUT if self._order == BY_INPUT else None

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.full is not None  # needs_full
        activation = seen.site.activation
        if activation is None or activation.rectifies:
            return seen.full <= 0
        assert self.lam is not None  # refuses() ensures it
        gradient = None if self.statistics is None else self.statistics[seen.site.name].gradient
        if gradient is None:
            raise SettingError(
                f"Oracle: the statistics of {seen.site.name} lack gradients, which lam needs; calibrate with them"
            )
        left = torch.as_tensor(seen.plan.dense_flops - seen.plan.stages[seen.stage].flops)
        left = left + seen.site.worth_of_zero
        worth = (2 * self.lam * left / floored(gradient)).sqrt().to(seen.full)
        shape = (-1, *(1,) * seen.spatial_dims)
        return activation(seen.full).abs() < worth.view(shape)

    def refuses(self, site: Site) -> str | None:
        if site.activation is None or site.activation.rectifies or self.lam is not None:
            return None
        return f"feeds {site.activation.name}, not a ReLU: Oracle needs a price for it, such as lam=1e-10"
