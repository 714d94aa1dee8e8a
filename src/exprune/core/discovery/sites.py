"""The layers of a model, and which of them can be pruned (docs/method.md, section 1)."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exprune.core.calls.activations import Activation
from exprune.core.calls.weights import Made, Part, Weight, masks_of, stored_now
from exprune.core.errors import SettingError

# What a neuron that is stopped early may output: 0, or what its activation makes of its expected value.
ZERO, PREDICTION = "zero", "prediction"

_SPATIAL_DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Site:
    """A layer of a model, and whether the neurons it computes can be stopped early.

    Attributes:
        name: its weight's name in the model, without ``.weight``: of most layers the name of the module.
        kind: ``linear``, ``conv1d``, ``conv2d`` or ``conv3d``; of a layer that cannot be a site, the name of its call.
        terms: N, the input channels whose contributions a neuron sums.
        weights_per_term: K, multiply-adds per term: 1, or the kernel's area.
        relu: whether its output reaches a ReLU through nothing but BatchNorm, factors per channel and additions.
        activation: the elementwise function that it reaches in this way, a ReLU or another; None: none.
        residual: whether another tensor is added on the way.
        spatial: positions per channel where the input is a flattened feature map, else 1.
        reason: why it cannot be pruned; None where it can.
        module: the module whose weight it is.
        parameter: what the module calls that weight.
        transposed: whether the module keeps it as (terms, outputs).
        part: which part of that parameter it is; None: all of it.
        made: how it is computed from parameters at each call; None: it is stored.
        outputs: neurons of one input or position; 0 where that is not known.
        gated: the layer with whose outputs its activation's are multiplied, neuron by neuron; None: none.
        reader: the one layer that reads what comes of it; None: several, or something else than a layer.
        spared: FLOPs in those two layers that an output of exactly 0 spares, by name of the layer.
        rows: of a layer that is some outputs of another, :attr:`whole`: from which to which; None: all of its own.
        ends: the modules that are its activation, where no call of torch is, each with what it computes.
        fused: the encoders and attentions around it that torch runs fused where no context looks on.
        hidden: whether the module computes products that no torch call shows (scripted functions, C++ code).
        outcomes: what its neurons may output when they are stopped: ``zero`` and ``prediction`` before an activation,
            ``prediction`` of any other layer that can be followed; none of those that cannot. See :func:`select_sites`.
    """

    name: str
    kind: str
    terms: int
    weights_per_term: int
    relu: bool
    activation: Activation | None = None
    residual: bool = False
    spatial: int = 1
    reason: str | None = None
    module: nn.Module = field(kw_only=True, repr=False, compare=False)
    parameter: str = "weight"
    transposed: bool = False
    part: Part | None = None
    made: Made | None = None
    outputs: int = 0
    hidden: bool = False
    outcomes: tuple[str, ...] = ()
    gated: str | None = None
    reader: str | None = None
    spared: Mapping[str, int] = field(default_factory=dict)
    rows: tuple[int, int] | None = None
    whole: str | None = None
    ends: tuple[tuple[nn.Module, Activation], ...] = field(default=(), repr=False, compare=False)
    fused: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)

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

    @property
    def followed(self) -> bool:
        """Whether its calls can be followed, be it to the reason why it cannot be pruned."""
        return self.kind in _SPATIAL_DIMS or self.kind.startswith("conv_transpose")

    @property
    def spatial_dims(self) -> int:
        """Dimensions of its kernel: 0 of a Linear."""
        return _SPATIAL_DIMS[self.kind]

    @property
    def channel_dim(self) -> int:
        """Where the channels stand, of the input and of the output."""
        return -1 - self.spatial_dims

    @property
    def weight(self) -> Tensor | None:
        """The weight as it is now, (outputs, terms, *kernel); None of a layer without a single one.

        One that is computed at each call is as it was when the site was found.
        """
        if self.made is not None:
            return self._own(self.made.value)
        weight = getattr(self.module, self.parameter, None)
        return self._own(weight) if isinstance(weight, Tensor) else None

    @property
    def mask(self) -> Tensor | None:
        """The weights that static pruning left, bool in the shape of :attr:`weight`; None where it removed none.

        As ``torch.nn.utils.prune`` keeps it, or a parametrization of ``torch.ao.pruning``;
        ``prune.custom_from_mask(module, "weight", module.weight != 0)`` makes one of weights that are zero already.

        Raises:
            SettingError: it is on the meta device, where it has no values.
        """
        mask = masks_of(self.module).get(self.parameter)
        if mask is None:
            return None
        if mask.is_meta:
            raise SettingError(f"{self.name}: its mask is on the meta device, where it has no values to count")
        left = mask != 0
        if self.part is not None and (stored := stored_now(self.module, self.parameter)) is not None:
            left = torch.empty_like(stored, dtype=torch.bool).copy_(left)  # laid out as the parameter that it masks
        if self.made is not None and (left.shape != self.made.value.shape or self.made.value[~left].any()):
            return None  # what is computed of the masked weight has no zeros there
        own = self._own(left)
        return None if bool(own.all()) else own

    @property
    def stored(self) -> Weight:
        """Whose weight it is."""
        return Weight(self.module, self.parameter, self.transposed, self.part, self.made)

    def _own(self, values: Tensor) -> Tensor:
        """Its outputs' of what its module keeps, (outputs, terms, *kernel)."""
        if self.part is not None:
            values = self.part.of(values)
        elif self.transposed:
            values = values.t()
        return values if self.rows is None else values[slice(*self.rows)]

    @property
    def dense_flops(self) -> int:
        """FLOPs of one output, ``2 * N * K``."""
        return 2 * self.terms * self.weights_per_term

    def described(self) -> "Site":
        """What is to be said of it, without the model."""
        activation = None if self.activation is None else self.activation.described()
        return replace(self, module=nn.Module(), activation=activation, made=None, ends=(), fused=())

    def order(self) -> Tensor | None:
        """The order in which terms are evaluated; None: as they stand.

        The inputs of a flattened feature map lie position by position, one channel after the other, so the
        first ones are neighbours and no sample. They are taken diagonally: the next channel and the next
        position each time.
        """
        if self.spatial == 1:
            return None
        channels = self.terms // self.spatial
        index = torch.arange(self.terms)
        channel = index % channels
        return channel * self.spatial + (channel + index // channels) % self.spatial


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
