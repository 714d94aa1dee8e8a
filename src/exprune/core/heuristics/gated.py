"""Leaving out the neurons of a feed-forward layer whose gate is small: CATS, CHESS."""

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
    """Where the output of an activation is small, in absolute value, it is 0: its layer is computed in full.

    The rule of CATS (Lee et al. 2024, arXiv 2404.08763): of ``h = g u``, ``g = act(W_g x)``, neurons are kept where
    ``|g_j| > t``. The others need neither their row of the layer of u nor their column of the one that reads h, which
    is counted as for any gate (docs/method.md, section 10). Where nothing is multiplied, fc2 leaves out its inputs
    below t. Other layers leave out nothing but what is exactly zero. It costs one comparison a neuron of the gate.

    Args:
        tau: the share of the neurons' outputs that is left out, in [0, 1], by their quantile on the calibration inputs
            (in steps of 1/1024, to 6 %); 0 leaves out what is exactly zero.
        statistics: as of :class:`InputRule`.
    """

    needs_statistics = True
    needs_full = True

    def refuses(self, site: Site) -> str | None:
        return f"is a convolution: {type(self).__name__} is a rule for Linear layers" if site.spatial_dims else None

    def choose(self, site: Site, tau: float) -> Choice:
        if site.before_activation:
            self.threshold(site, tau)  # what it lacks is said before the run
        return Choice(nonzero, 0)

    def threshold(self, site: Site, tau: float) -> float | Tensor:
        """Up to what absolute value an output of the activation is left out; one number, or one per neuron."""
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
            raise SettingError(f"{type(self).__name__}: nothing of {site.name}'s outputs; calibrate with order=input")
        return of


class Chess(Cats):
    """As :class:`Cats`, with the neurons kept where ``g_j^2 E[u_j^2]`` is large; elsewhere :class:`Teal`'s rule.

    The rule of CHESS (He et al. 2024, arXiv 2409.01366): a neuron is kept where ``|g_j| > sqrt(t / E[u_j^2])``, a
    number for each neuron, so that it costs the same comparison. Layers without an activation, beside those of such a
    product, leave out their small inputs by the same share: CHESS does so before the projections of queries and of
    outputs, which ``sites`` can name.

    Args:
        tau: the share of the neurons' outputs, and of the other layers' inputs, that is left out, likewise.
        statistics: likewise; those of the layer that is multiplied with a gate are needed too.

    Raises:
        SettingError: when the run begins, the statistics lack what it needs.
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
                f"{type(self).__name__}: nothing of the outputs of {site.gated}, with which those of {site.name} are "
                "multiplied; calibrate with scope=all"
            )
        return _quantile(of.weighed, tau) / of.factor


def _quantile(quantiles: Tensor | None, tau: float) -> float:
    assert quantiles is not None  # else it is said that they are missing
    return float(quantiles[int(tau * (len(quantiles) - 1))])
