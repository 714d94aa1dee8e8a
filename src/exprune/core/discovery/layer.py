"""A layer of a model: its weight, and the terms that its neurons sum (docs/method.md, section 1)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exprune.core.calls.weights import Weight, masks_of, stored_now
from exprune.core.errors import SettingError

_SPATIAL_DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: The name of its weight in the model without ``.weight``; for most layers this is the name of the module.
        kind: ``linear``, ``conv1d``, ``conv2d`` or ``conv3d``; for layers that cannot be pruned, the name of the torch
            call.
        terms: The number N of input channels whose contributions a neuron sums.
        weights_per_term: Multiply-adds per term, K: 1, or the number of positions of the kernel.
        stored: The weight, and the module that stores it.
        outputs: The number of neurons per input or position; 0 if unknown.
        spatial: Positions per channel if the input is a flattened feature map; otherwise 1.
        rows: For a layer that is a part of another layer's outputs (see ``whole``), the first output and the end;
            otherwise None.
        whole: The name of the layer that this one is a part of; otherwise None.
        hidden: Whether the module computes products that no torch call shows (scripted functions, C++ code).
        fused: Enclosing encoders and attention modules that torch would run as one fused operator.
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
        """Whether its calls can be followed, if only to determine why it cannot be pruned."""
        return self.kind in _SPATIAL_DIMS or self.kind.startswith("conv_transpose")

    @property
    def spatial_dims(self) -> int:
        """The number of dimensions of its kernel; 0 for a Linear."""
        return _SPATIAL_DIMS[self.kind]

    @property
    def dense_flops(self) -> int:
        """FLOPs of one output, ``2 * N * K``."""
        return 2 * self.terms * self.weights_per_term

    @property
    def weight(self) -> Tensor | None:
        """The current weight (outputs, terms, *kernel); None if the layer has no single weight.

        A weight that is computed at each call is the one seen when the layer was found.
        """
        if self.stored.made is not None:
            return self._own(self.stored.made.value)
        weight = getattr(self.stored.module, self.stored.parameter, None)
        return self._own(weight) if isinstance(weight, Tensor) else None

    @property
    def mask(self) -> Tensor | None:
        """The weights that static pruning has kept, bool in the shape of `weight`; None if none were removed.

        Masks of ``torch.nn.utils.prune`` and of parametrizations of ``torch.ao.pruning`` are recognised. For weights
        that were set to zero without a mask, ``prune.custom_from_mask(module, "weight", module.weight != 0)`` creates
        one.

        Raises:
            SettingError: If the mask is on the meta device, where it has no values.
        """
        module, parameter, made = self.stored.module, self.stored.parameter, self.stored.made
        mask = masks_of(module).get(parameter)
        if mask is None:
            return None
        if mask.is_meta:
            raise SettingError(f"{self.name}: its mask is on the meta device, where it has no values to count")
        left = mask != 0
        if self.stored.part is not None and (stored := stored_now(module, parameter)) is not None:
            left = torch.empty_like(stored, dtype=torch.bool).copy_(left)  # in the layout of the masked parameter
        if made is not None and (left.shape != made.value.shape or made.value[~left].any()):
            return None  # the weight computed from the masked parameter has no zeros there
        own = self._own(left)
        return None if bool(own.all()) else own

    def _own(self, values: Tensor) -> Tensor:
        """This layer's part of the values that its module stores, as (outputs, terms, *kernel)."""
        if self.stored.part is not None:
            values = self.stored.part.of(values)
        elif self.stored.transposed:
            values = values.t()
        return values if self.rows is None else values[slice(*self.rows)]

    def order(self) -> Tensor | None:
        """The order in which terms are evaluated; None keeps the order of the input.

        The inputs of a flattened feature map are sorted by channel, then by position, so the first ones are neighbours
        and not a random sample. They are taken diagonally instead: each time the next channel and the next position.
        """
        if self.spatial == 1:
            return None
        channels = self.terms // self.spatial
        index = torch.arange(self.terms)
        channel = index % channels
        return channel * self.spatial + (channel + index // channels) % self.spatial
