"""Rules that skip the neurons of a feed-forward layer whose gate is small: CATS and CHESS."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exprune.core.calibration.lines import SiteStatistics
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.prefix import Prefix
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.input_rule import InputRule, nonzero
from exprune.core.heuristics.teal import Teal


class Cats(InputRule):
    """CATS: set small outputs of an activation to 0, in absolute value, so that later layers skip them.

    This is the rule of CATS (Lee et al. 2024, arXiv 2404.08763). In ``h = g u`` with ``g = act(W_g x)``, a neuron j is
    kept if ``|g_j| > t``. The others need neither their row in the layer of u nor their column in the layer that reads
    h, and this is counted as for any gate (docs/method.md, section 10). Without a product, the layer that reads the
    outputs skips those below t. Other layers skip only exact zeros. The layer of g is computed in full. The rule costs
    one comparison per neuron of the gate.

    Args:
        tau: The share of the neurons' outputs to skip, in [0, 1]. The threshold t is the corresponding quantile on the
            calibration inputs (in steps of 1/1024, accurate to 6 %). 0 skips exact zeros only.
        statistics: The statistics of each site, from a `Recorder` with the order ``"input"``.

    Raises:
        SettingError: If ``tau`` is out of range. When the run begins, if the statistics of a site are missing.
    """

    needs_statistics = True
    needs_full = True

    def refuses(self, site: Site) -> str | None:
        return f"is a convolution: {type(self).__name__} is a rule for Linear layers" if site.spatial_dims else None

    def choose(self, site: Site, tau: float) -> Choice:
        if site.before_activation:
            self.threshold(site, tau)  # raises before the run if statistics are missing
        return Choice(nonzero, 0)

    def threshold(self, site: Site, tau: float) -> float | Tensor:
        """The threshold for the absolute output of the activation: one number, or one per neuron."""
        return _quantile(self._measured(site).outputs, tau) if tau else 0.0

    def stop(self, seen: Prefix) -> Tensor:
        if not seen.site.before_activation:
            return super().stop(seen)
        assert seen.full is not None and seen.site.activation is not None  # needs_full
        outputs, threshold = seen.site.activation(seen.full).abs(), self.threshold(seen.site, seen.tau)
        return outputs <= (threshold.to(outputs) if isinstance(threshold, Tensor) else threshold)

    def prediction(self, seen: Prefix) -> Tensor:
        if seen.site.before_activation:
            return torch.full_like(seen.s, -math.inf)
        return super().prediction(seen)

    def overhead(self, stage: int, site: Site) -> int:
        return int(site.before_activation)

    def _measured(self, site: Site) -> SiteStatistics:
        of = (self.statistics or {}).get(site.name)
        if of is None or of.outputs is None:
            raise SettingError(
                f"{type(self).__name__}: the outputs of {site.name} were not measured; calibrate with order=input"
            )
        return of


class Chess(Cats):
    """CHESS: like `Cats`, but keep neurons with a large ``g_j^2 E[u_j^2]``; other layers follow `Teal`'s rule.

    This is the rule of CHESS (He et al. 2024, arXiv 2409.01366). A neuron is kept if ``|g_j| > sqrt(t / E[u_j^2])``.
    This is one threshold per neuron, so the cost is the same comparison. Layers that do not take part in such a product
    skip the same share of their small inputs. CHESS does this before the query and output projections of attention,
    which ``sites`` can select.

    Args:
        tau: The share of the neurons' outputs, and of the other layers' inputs, to skip, in [0, 1].
        statistics: As for `Cats`. Those of the layer that is multiplied by the gate are needed too.

    Raises:
        SettingError: If ``tau`` is out of range. When the run begins, if the statistics of a site are missing.
    """

    def choices(self, sites: Sequence[Site], taus: Mapping[str, Any]) -> Mapping[str, Choice]:
        ends = {name for site in sites if site.activation is not None for name in (site.gated, site.reader)}
        inputs = Teal(0.0, self.statistics)
        return {
            site.name: (self if site.before_activation or site.name in ends else inputs).choose(site, taus[site.name])
            for site in sites
            if site.name in taus
        }

    def threshold(self, site: Site, tau: float) -> float | Tensor:
        of = self._measured(site)
        if not tau or site.gated is None:
            return super().threshold(site, tau)
        if of.factor is None:
            raise SettingError(
                f"{type(self).__name__}: the outputs of {site.gated}, which those of {site.name} multiply, were not "
                "measured; calibrate with scope=all"
            )
        return _quantile(of.weighed, tau) / of.factor


def _quantile(quantiles: Tensor | None, tau: float) -> float:
    assert quantiles is not None  # a missing one was reported before
    return float(quantiles[int(tau * (len(quantiles) - 1))])
