"""Sites: the layers of a model, and which of them can be pruned (docs/method.md, section 1)."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from torch import nn

from exprune.core.calls.activations import Activation
from exprune.core.discovery.layer import Layer
from exprune.core.errors import SettingError

# What a neuron that is stopped early may output: 0, or the activation of its expected value.
ZERO, PREDICTION = "zero", "prediction"

T = TypeVar("T")


class _Of(Generic[T]):
    """An attribute of a part of a site, available as an attribute of the site."""

    def __init__(self, get: Callable[["Site"], T]) -> None:
        self._get = get

    def __get__(self, site: "Site", owner: type | None = None) -> T:
        return self._get(site)


@dataclass(frozen=True)
class Feeds:
    """What a layer's output leads to.

    Attributes:
        activation: The elementwise function that the output reaches, with nothing but BatchNorm, factors per channel
            and additions in between; None if there is none.
        residual: Whether another tensor is added on the way.
        ends: Modules that are the activation without a torch call, each with the function it computes.
    """

    activation: Activation | None = None
    residual: bool = False
    ends: tuple[tuple[nn.Module, Activation], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Worth:
    """The FLOPs that zeros after a layer's activation save in other layers.

    Attributes:
        gated: The layer whose outputs are multiplied by the activation's, neuron by neuron; None if there is none.
        reader: The only layer that reads the result; None if there are several, or if it is not a layer.
        spared: FLOPs that an output of exactly 0 saves in these two layers, by the layer's name.
    """

    gated: str | None = None
    reader: str | None = None
    spared: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A layer of a model, and whether its neurons can be stopped early.

    The attributes of ``layer``, ``feeds`` and ``worth`` are attributes of the site as well, for example ``site.terms``,
    ``site.activation`` and ``site.spared``.

    Attributes:
        layer: The layer: its weight and its terms.
        feeds: The activation that its output reaches.
        worth: What zeros of its output save in other layers.
        reason: Why it cannot be pruned; None if it can.
        outcomes: What its neurons may output when they are stopped: ``zero`` and ``prediction`` before an activation,
            ``prediction`` for any other layer that can be followed, nothing otherwise. See `select_sites`.
        name: The name of the layer.
        kind: ``linear``, ``conv1d``, ``conv2d``, ``conv3d``, or the name of another torch call.
        terms: The number N of terms that a neuron sums.
        outputs: The number of neurons per input or position.
        weight: The current weight (outputs, terms, *kernel).
        mask: The weights that static pruning has kept, bool in the shape of the weight; None if none were removed.
        module: The module that stores the weight.
        activation: The activation; None if there is none.
        relu: Whether the activation is a ReLU.
        dense_flops: FLOPs of one output, ``2 * N * K``.
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
        """Whether it can be pruned: it has no `reason`."""
        return self.reason is None

    @property
    def before_activation(self) -> bool:
        """Whether it is tested at its activation; otherwise it is tested at its own output."""
        return ZERO in self.outcomes

    @property
    def before_relu(self) -> bool:
        """Whether it is tested at a ReLU."""
        return self.before_activation and self.relu

    @property
    def rectified(self) -> bool:
        """Whether it is tested at an activation that maps all negative values to 0, such as ReLU or its square."""
        return self.before_activation and self.activation is not None and self.activation.rectifies

    @property
    def spared_by_stopping(self) -> dict[str, int]:
        """The part of `spared` that the dense network does not save itself. It can skip a rectified neuron's column."""
        return {name: flops for name, flops in self.spared.items() if name != self.reader or not self.rectified}

    @property
    def worth_of_zero(self) -> int:
        """FLOPs that stopping with an output of 0 saves in other layers."""
        return sum(self.spared_by_stopping.values())

    def described(self) -> "Site":
        """A copy that describes the site without the model."""
        stored = replace(self.stored, module=nn.Module(), made=None)
        activation = None if self.activation is None else self.activation.described()
        layer = replace(self.layer, stored=stored, fused=())
        return replace(self, layer=layer, feeds=replace(self.feeds, activation=activation, ends=()))


SCOPES = ("relu", "all")


def select_sites(sites: Sequence[Site], patterns: Sequence[str] | str | None, scope: str = "relu") -> list[Site]:
    """Restrict pruning to the sites that match a name or a wildcard. The others get the reason "not selected".

    Args:
        sites: The layers, from `find_sites`.
        patterns: One or several names or wildcards (``*``, ``?``, ``[0-3]``); None keeps all.
        scope: ``"relu"`` is the scope of the paper: layers before an activation that do not read the raw input.
            ``"all"`` also includes every layer whose neurons can be stopped with a prediction.

    Returns:
        All layers, in the same order.

    Raises:
        SettingError: If a pattern matches no eligible site, or if ``scope`` is neither of these.

    Example:
        ```python
        sites = select_sites(find_sites(model, batch), "decoder.*.fc1")
        ```
    """
    if scope not in SCOPES:
        raise SettingError(f"scope={scope!r}: must be {' or '.join(SCOPES)}")
    if scope == "all":
        sites = [replace(site, reason=None) if site.outcomes and not _in_parts(site, sites) else site for site in sites]
    if patterns is None:
        return list(sites)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    eligible = [site.name for site in sites if site.eligible]
    for pattern in patterns:
        if not matching(pattern, eligible):
            given = [f"{s.name} cannot be pruned: {s.reason}" for s in sites if matching(pattern, [s.name])]
            why = given[0] if given else "there is no site of that name"
            raise SettingError(f"sites: {pattern!r}: {why}; eligible are {', '.join(eligible) or 'none'}")
    return [
        site
        if not site.eligible or any(matching(pattern, [site.name]) for pattern in patterns)
        else replace(site, reason="not selected")
        for site in sites
    ]


def with_wholes(sites: Sequence[Site]) -> list[Site]:
    """The eligible sites, and the layers they are parts of, whose calls must be observed."""
    wholes = {site.whole for site in sites if site.eligible}
    return [site for site in sites if site.eligible or site.name in wholes]


def _in_parts(site: Site, sites: Sequence[Site]) -> bool:
    """Whether its outputs belong to other sites."""
    return any(part.whole == site.name for part in sites)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that equal the pattern or match it as a wildcard (``*``, ``?``, ``[0-3]``)."""
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
