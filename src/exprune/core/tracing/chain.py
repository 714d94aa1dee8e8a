"""A pre-activation on its way from its linear layer to its activation (docs/method.md, section 1)."""

from dataclasses import dataclass, replace

from torch import Tensor

from exprune.core.calls.activations import Activation
from exprune.core.calls.layers import LinearCall


@dataclass(frozen=True)
class Chain:
    """A pre-activation on its way to its activation: ``z = scale * (sum of terms) + shift + residual``.

    Attributes:
        name: The name of the layer.
        call: The call of the layer.
        scale: One value per output channel, which broadcasts over ``z``; None means 1.
        shift: One value per output channel, which broadcasts over ``z``; None means 0.
        residual: A tensor that was added; None means 0.
        stage: The number of operations since the layer.
        activation: The activation that was reached, if any.
    """

    name: str
    call: LinearCall
    scale: Tensor | None = None
    shift: Tensor | float | None = None
    residual: Tensor | None = None
    stage: int = 0
    activation: Activation | None = None

    @property
    def beside(self) -> Tensor | float:
        """What is added to the terms in any case; a tensor broadcasts over ``z``."""
        shift = 0.0 if self.shift is None else self.shift
        return shift if self.residual is None else shift + self.residual

    def affine(self, scale: Tensor, shift: Tensor) -> "Chain":
        """The chain after an eval-mode BatchNorm."""
        return replace(
            self,
            scale=scale if self.scale is None else self.scale * scale,
            shift=shift if self.shift is None else self.shift * scale + shift,
            residual=None if self.residual is None else self.residual * scale,
            stage=self.stage + 1,
        )

    def scaled(self, scale: Tensor) -> "Chain":
        """The chain after a product with one number, or with one per channel."""
        further = self.affine(scale, scale.new_zeros(()))
        return further if self.shift is not None else replace(further, shift=None)

    def plus(self, other: Tensor) -> "Chain":
        """The chain after the addition of a tensor in the shape of ``z``."""
        residual = other if self.residual is None else self.residual + other
        return replace(self, residual=residual, stage=self.stage + 1)

    def shifted(self, shift: Tensor | float) -> "Chain":
        """The chain after the addition of one number, or of one per channel."""
        return replace(self, shift=shift if self.shift is None else self.shift + shift, stage=self.stage + 1)

    def part(self, name: str, start: int, end: int) -> "Chain":
        """The chain of some of a Linear's channels."""

        def some(values: Tensor | None) -> Tensor | None:
            return values if values is None or not values.dim() or values.shape[-1] == 1 else values[..., start:end]

        weight = self.call.weight[start:end]
        call = replace(self.call, weight=weight, sums=tuple(sums[..., start:end] for sums in self.call.sums))
        shift = some(self.shift) if isinstance(self.shift, Tensor) else self.shift
        return Chain(name, call, some(self.scale), shift, some(self.residual))

    def viewed(self, before: tuple[int, ...], after: tuple[int, ...]) -> "Chain":
        """The chain after the rows of a Linear layer were given other leading dimensions."""
        residual = None if self.residual is None else self.residual.expand(before).reshape(after)
        return replace(self, residual=residual, stage=self.stage + 1)
