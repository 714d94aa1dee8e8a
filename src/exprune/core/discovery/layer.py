"""A layer of a model: whose weight it is, and what its neurons sum (docs/method.md, section 1)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exprune.core.calls.weights import Weight, masks_of, stored_now
from exprune.core.errors import SettingError

_SPATIAL_DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Layer:
    """What a layer is.

    Attributes:
        name: its weight's name in the model, without ``.weight``: of most layers the name of the module.
        kind: ``linear``, ``conv1d``, ``conv2d`` or ``conv3d``; of a layer that cannot be a site, the name of its call.
        terms: N, the input channels whose contributions a neuron sums.
        weights_per_term: K, multiply-adds per term: 1, or the kernel's area.
        stored: whose weight it is.
        outputs: neurons of one input or position; 0 where that is not known.
        spatial: positions per channel where the input is a flattened feature map, else 1.
        rows: of a layer that is some outputs of another, :attr:`whole`: from which to which; None: all of its own.
        hidden: whether the module computes products that no torch call shows (scripted functions, C++ code).
        fused: the encoders and attentions around it that torch runs fused where no context looks on.
    """

    name: str
    kind: str
    terms: int
    weights_per_term: int
    stored: Weight = field(repr=False, compare=False)
    outputs: int = 0
    spatial: int = 1
    rows: tuple[int, int] | None = None
    whole: str | None = None
    hidden: bool = False
    fused: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)

    @property
    def followed(self) -> bool:
        """Whether its calls can be followed, be it to the reason why it cannot be pruned."""
        return self.kind in _SPATIAL_DIMS or self.kind.startswith("conv_transpose")

    @property
    def spatial_dims(self) -> int:
        """Dimensions of its kernel: 0 of a Linear."""
        return _SPATIAL_DIMS[self.kind]

    @property
    def dense_flops(self) -> int:
        """FLOPs of one output, ``2 * N * K``."""
        return 2 * self.terms * self.weights_per_term

    @property
    def weight(self) -> Tensor | None:
        """The weight as it is now, (outputs, terms, *kernel); None of a layer without a single one.

        One that is computed at each call is as it was when the layer was found.
        """
        if self.stored.made is not None:
            return self._own(self.stored.made.value)
        weight = getattr(self.stored.module, self.stored.parameter, None)
        return self._own(weight) if isinstance(weight, Tensor) else None

    @property
    def mask(self) -> Tensor | None:
        """The weights that static pruning left, bool in the shape of :attr:`weight`; None where it removed none.

        As ``torch.nn.utils.prune`` keeps it, or a parametrization of ``torch.ao.pruning``;
        ``prune.custom_from_mask(module, "weight", module.weight != 0)`` makes one of weights that are zero already.

        Raises:
            SettingError: it is on the meta device, where it has no values.
        """
        module, parameter, made = self.stored.module, self.stored.parameter, self.stored.made
        mask = masks_of(module).get(parameter)
        if mask is None:
            return None
        if mask.is_meta:
            raise SettingError(f"{self.name}: its mask is on the meta device, where it has no values to count")
        left = mask != 0
        if self.stored.part is not None and (stored := stored_now(module, parameter)) is not None:
            left = torch.empty_like(stored, dtype=torch.bool).copy_(left)  # laid out as the parameter that it masks
        if made is not None and (left.shape != made.value.shape or made.value[~left].any()):
            return None  # what is computed of the masked weight has no zeros there
        own = self._own(left)
        return None if bool(own.all()) else own

    def _own(self, values: Tensor) -> Tensor:
        """Its outputs' of what its module keeps, (outputs, terms, *kernel)."""
        if self.stored.part is not None:
            values = self.stored.part.of(values)
        elif self.stored.transposed:
            values = values.t()
        return values if self.rows is None else values[slice(*self.rows)]

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
