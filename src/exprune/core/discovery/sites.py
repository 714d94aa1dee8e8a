"""The layers of a model, and which of them can be pruned (docs/method.md, section 1)."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from torch import nn

from exprune.core.calls.activations import Activation
from exprune.core.discovery.layer import Layer
from exprune.core.errors import SettingError

# What a neuron that is stopped early may output: 0, or what its activation makes of its expected value.
ZERO, PREDICTION = "zero", "prediction"

T = TypeVar("T")


class _Of(Generic[T]):
    """An attribute of a part of a site, as one of the site's own."""

    def __init__(self, get: Callable[["Site"], T]) -> None:
        self._get = get

    def __get__(self, site: "Site", owner: type | None = None) -> T:
        return self._get(site)


@dataclass(frozen=True)
class Feeds:
    """What a layer feeds.

    Attributes:
        activation: the elementwise function that its output reaches, a ReLU or another, through nothing but BatchNorm,
            factors per channel and additions; None: none.
        residual: whether another tensor is added on the way.
        ends: the modules that are its activation, where no call of torch is, each with what it computes.
    """

    activation: Activation | None = None
    residual: bool = False
    ends: tuple[tuple[nn.Module, Activation], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Worth:
    """What zeros behind a layer's activation are worth elsewhere.

    Attributes:
        gated: the layer with whose outputs its activation's are multiplied, neuron by neuron; None: none.
        reader: the one layer that reads what comes of it; None: several, or something else than a layer.
        spared: FLOPs in those two layers that an output of exactly 0 spares, by name of the layer.
    """

    gated: str | None = None
    reader: str | None = None
    spared: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A layer of a model, and whether the neurons it computes can be stopped early.

    What its parts say is said by the site as well: ``site.terms``, ``site.activation``, ``site.spared``, ...

    Attributes:
        layer: what it is.
        feeds: what its outputs reach.
        worth: what its zeros are worth.
        reason: why it cannot be pruned; None where it can.
        outcomes: what its neurons may output when they are stopped: ``zero`` and ``prediction`` before an activation,
            ``prediction`` of any other layer that can be followed; none of those that cannot. See :func:`select_sites`.
        module: the module whose weight it is.
        relu: whether its activation is a ReLU.
    """

    layer: Layer
    feeds: Feeds
    worth: Worth
    reason: str | None = None
    outcomes: tuple[str, ...] = ()

    name = _Of(lambda site: site.layer.name)
    kind = _Of(lambda site: site.layer.kind)
    terms = _Of(lambda site: site.layer.terms)
    weights_per_term = _Of(lambda site: site.layer.weights_per_term)
    outputs = _Of(lambda site: site.layer.outputs)
    spatial = _Of(lambda site: site.layer.spatial)
    spatial_dims = _Of(lambda site: site.layer.spatial_dims)
    rows = _Of(lambda site: site.layer.rows)
    whole = _Of(lambda site: site.layer.whole)
    hidden = _Of(lambda site: site.layer.hidden)
    stored = _Of(lambda site: site.layer.stored)
    module = _Of(lambda site: site.layer.stored.module)
    weight = _Of(lambda site: site.layer.weight)
    mask = _Of(lambda site: site.layer.mask)
    dense_flops = _Of(lambda site: site.layer.dense_flops)
    order = _Of(lambda site: site.layer.order)
    activation = _Of(lambda site: site.feeds.activation)
    residual = _Of(lambda site: site.feeds.residual)
    relu = _Of(lambda site: site.activation is not None and site.activation.relu)
    gated = _Of(lambda site: site.worth.gated)
    reader = _Of(lambda site: site.worth.reader)
    spared = _Of(lambda site: site.worth.spared)

    @property
    def eligible(self) -> bool:
        return self.reason is None

    @property
    def before_activation(self) -> bool:
        """Whether it is tested at its activation; else at its own output."""
        return ZERO in self.outcomes

    @property
    def before_relu(self) -> bool:
        """Whether it is tested at a ReLU."""
        return self.before_activation and self.relu

    @property
    def rectified(self) -> bool:
        """Whether it is tested at an activation that makes 0 of all that is negative, a ReLU or its square."""
        return self.before_activation and self.activation is not None and self.activation.rectifies

    @property
    def spared_by_stopping(self) -> dict[str, int]:
        """Those of :attr:`spared` that are no saving of the dense network's own: a rectified neuron's column is."""
        return {name: flops for name, flops in self.spared.items() if name != self.reader or not self.rectified}

    @property
    def worth_of_zero(self) -> int:
        """FLOPs elsewhere that stopping with 0 spares."""
        return sum(self.spared_by_stopping.values())

    def described(self) -> "Site":
        """What is to be said of it, without the model."""
        stored = replace(self.stored, module=nn.Module(), made=None)
        activation = None if self.activation is None else self.activation.described()
        layer = replace(self.layer, stored=stored, fused=())
        return replace(self, layer=layer, feeds=replace(self.feeds, activation=activation, ends=()))


SCOPES = ("relu", "all")


def select_sites(sites: Sequence[Site], patterns: Sequence[str] | str | None, scope: str = "relu") -> list[Site]:
    """Restrict pruning to the sites that match a name or a wildcard; the others stay, with that as their reason.

    Args:
        scope: ``relu``, the paper's: layers before a ReLU, or another activation that a heuristic serves, that do not
            read the raw input; ``all``: every layer that admits some outcome, so that its neurons can be stopped with
            their prediction.

    Raises:
        SettingError: a pattern matches no eligible site, or there is no such scope.
    """
    if scope not in SCOPES:
        raise SettingError(f"scope={scope!r}: {' or '.join(SCOPES)}")
    if scope == "all":
        sites = [replace(site, reason=None) if site.outcomes and not _in_parts(site, sites) else site for site in sites]
    if patterns is None:
        return list(sites)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    eligible = [site.name for site in sites if site.eligible]
    for pattern in patterns:
        if not matching(pattern, eligible):
            given = [f"{s.name} cannot be pruned: {s.reason}" for s in sites if matching(pattern, [s.name])]
            why = given[0] if given else "no site of that name"
            raise SettingError(f"sites: {pattern!r}: {why}; eligible are {', '.join(eligible) or 'none'}")
    return [
        site
        if not site.eligible or any(matching(pattern, [site.name]) for pattern in patterns)
        else replace(site, reason="not selected")
        for site in sites
    ]


def with_wholes(sites: Sequence[Site]) -> list[Site]:
    """The eligible sites, and the layers that they are parts of, whose calls are to be seen."""
    wholes = {site.whole for site in sites if site.eligible}
    return [site for site in sites if site.eligible or site.name in wholes]


def _in_parts(site: Site, sites: Sequence[Site]) -> bool:
    """Whether its outputs are other sites'."""
    return any(part.whole == site.name for part in sites)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that are the pattern or match it as a wildcard (``*``, ``?``, ``[0-3]``)."""
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
