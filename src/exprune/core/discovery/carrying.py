"""Carrying pre-activations from their linear layers to their activations, through torch calls alone.

The output of a watched layer is tagged. The tag survives what leaves the sum of terms a sum of terms (eval-mode
BatchNorm, products with one number per channel, additions, other shapes of a Linear's rows, some of its channels), step
by step (:mod:`exprune.core.discovery.steps`), and the activation that receives it is reported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.layers import LinearCall, per_channel
from exprune.core.discovery.chain import Chain


class Carrier(TorchFunctionMode):
    """The context that carries chains; subclasses say of which layers, and what to do at an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.chains = WeakTensorKeyDictionary()

    # What subclasses decide.

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        """The name of the layer that a call is one of; None: of none that is followed."""
        raise NotImplementedError

    def execute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a torch call of the model."""
        return func(*args, **kwargs)

    def passes(self, chain: Chain) -> None:
        """A chain goes through a call."""

    def reads(self, chain: Chain, func: Callable) -> None:
        """A call that a chain does not go through has read or changed its pre-activation."""

    def version(self, tensor: Tensor) -> int:
        """A number that is another one once the tensor was changed in place, where that is watched."""
        return 0

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        """``chain`` is about to go through an activation, which may change its pre-activation ``z`` in place."""

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        """``chain`` has reached its activation, whose output is ``out``; of a layer without one, the layer."""

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two tagged tensors that are added, the one whose chain goes on."""
        return left

    def constant(self, tensor: Tensor) -> bool:
        """Whether a factor or summand of a chain is the same for every input."""
        return True

    def at_batch_statistics(self, training_mode: bool) -> None:
        """A BatchNorm uses the statistics of the batch: it is in training mode, or keeps no others."""

    def compute(
        self, name: str, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]
    ) -> tuple[Tensor, LinearCall]:
        """The output of a followed layer's call, which ``run`` computes, and what is to be known of it."""
        return run(), call

    def tag(self, name: str, out: Tensor, call: LinearCall, bias: Tensor | None) -> None:
        """A chain begins."""
        shift = None if bias is None else per_channel(bias, call.spatial_dims)
        self.begin(Chain(name, call, shift=shift), out)

    def begin(self, chain: Chain, out: Tensor) -> None:
        """``chain`` begins, with the pre-activation ``out``."""
        self.chains[out] = chain

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        """The chain of these channels of another's, if they are followed."""
        return None

    # What steps are made of.

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        with torch._C._EnableTorchFunction():
            return self.execute(func, args, kwargs)

    def closes(self, chain: Chain, out: Tensor) -> None:
        """``chain`` ends in its activation, whose output is ``out``."""
        self.passes(chain)
        self.chains.pop(out, None)  # an in-place activation returns the pre-activation's own object
        self.at_activation(chain, out)

    def carry(self, chain: Chain, out: Tensor, further: Chain) -> None:
        self.passes(chain)
        self.chains[out] = further

    def one_per_channel(self, chain: Chain, z: Tensor, other: Any) -> Tensor | float | None:
        """``other`` where it is one number, or one per channel of ``z``, and the same for every input; else None."""
        if isinstance(other, bool) or not isinstance(other, Tensor | int | float):
            return None
        if not isinstance(other, Tensor):
            return other
        dim = chain.call.channel_dim
        # The shape tells what it is a number of: where it has fewer dimensions it is none per channel.
        of_channels = -dim <= other.dim() <= z.dim() and other.shape[dim] == other.numel() == z.shape[dim]
        if not (of_channels or other.numel() == 1) or not self.constant(other):
            return None
        return per_channel(other, chain.call.spatial_dims)
