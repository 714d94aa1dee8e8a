"""Carrying pre-activations from their linear layers to their activations, through torch calls alone.

A :class:`Carrier` sees every torch call of an eager forward pass. It tags the output of a watched layer, carries
the tag through what leaves the sum of terms a sum of terms (eval-mode BatchNorm, products with one number per channel,
additions, other shapes of a Linear's rows, some of its channels), and reports the activation that receives it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls import effects
from exprune.core.calls.activations import ACTIVATION_CALLS, activation_of
from exprune.core.calls.layers import LAYER_CALLS, LinearCall, layer_call, named, per_channel
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

    # How a tag travels.

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        step = _STEPS.get(func) or (Carrier._activation if func in ACTIVATION_CALLS else None)
        # What is worked out here is no call of the model: a context around this one must not see it.
        with torch._C.DisableTorchFunction():
            if step is not None and (done := step(self, func, args, kwargs)) is not None:
                return done
            return self._other(func, args, kwargs)

    def _execute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        with torch._C._EnableTorchFunction():
            return self.execute(func, args, kwargs)

    def _other(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A call that no chain goes through."""
        tagged = [
            (x, chain, self.version(x))
            for x in effects.tensors((args, kwargs))
            if (chain := self.chains.get(x)) is not None and not effects.describes(func)
        ]
        out = self._execute(func, args, kwargs)
        for x, chain, version in tagged:
            changed = effects.changes(func, kwargs) or self.version(x) != version
            if changed:
                self.chains.pop(x, None)
            same = any(x is result for result in effects.tensors(out))  # the same object: contiguous, dropout, ...
            if changed or not same:
                self.reads(chain, func)
        return out

    def _layer(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        parsed = layer_call(func, args, kwargs)
        if parsed is None:
            return None
        call, bias = parsed
        name = self.layer(func, call)
        if name is None:
            return None
        read = [chain for x in effects.tensors((args, kwargs)) if (chain := self.chains.get(x)) is not None]
        out, call = self.compute(name, call, bias, lambda: self._execute(func, args, kwargs))
        for chain in read:
            self.reads(chain, func)
        self.tag(name, out, call, bias)
        return out

    def _batch_norm(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = named(names, args, kwargs)
        mean, variance = given["running_mean"], given["running_var"]
        of_batch = given.get("training", False) or mean is None
        if of_batch:
            self.at_batch_statistics(training_mode=mean is not None)
        chain, z = self.chains.get(given["input"]), given["input"]
        # BatchNorm's channels are dimension 1; of a Linear's output those are its own only where it is a matrix.
        if chain is None or of_batch or z.dim() != chain.call.spatial_dims + 2:
            return None
        out = self._execute(func, args, kwargs)
        scale = (variance + given.get("eps", 1e-5)).rsqrt()
        if given.get("weight") is not None:
            scale = scale * given["weight"]
        shift = -mean * scale
        if given.get("bias") is not None:
            shift = shift + given["bias"]
        dims = chain.call.spatial_dims
        self.carry(chain, out, chain.affine(per_channel(scale, dims), per_channel(shift, dims)))
        return out

    def _add(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        left, right = effects.operands(args, kwargs)
        candidates = [x for x in (left, right) if isinstance(x, Tensor) and x in self.chains]
        if not candidates or left is right or kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
            return None
        own = self.deeper(left, right) if len(candidates) == 2 else candidates[0]
        other = right if own is left else left
        chain, shape = self.chains[own], own.shape
        if isinstance(other, Tensor) and torch.broadcast_shapes(shape, other.shape) != shape:
            return None
        if func in effects.IN_PLACE_ADDS and own is not left:
            other = left.clone()  # it is about to become the sum
        beside = self._one_per_channel(chain, own, other)
        out = self._execute(func, args, kwargs)
        self.carry(chain, out, chain.plus(other) if beside is None else chain.shifted(beside))
        return out

    def _sub(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        left, right = effects.operands(args, kwargs)
        chain = self.chains.get(left) if isinstance(left, Tensor) else None
        if chain is None or kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
            return None
        beside = self._one_per_channel(chain, left, right)
        if beside is None:
            return None
        out = self._execute(func, args, kwargs)
        self.carry(chain, out, chain.shifted(-beside))
        return out

    def _scale(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        left, right = effects.operands(args, kwargs)
        if func not in effects.DIVISIONS and isinstance(right, Tensor) and right in self.chains:
            left, right = right, left
        chain = self.chains.get(left) if isinstance(left, Tensor) else None
        if chain is None or {"out", "rounding_mode"} & kwargs.keys():
            return None
        factor = self._one_per_channel(chain, left, right)
        if factor is None:
            return None
        factor = torch.as_tensor(factor, dtype=left.dtype, device=left.device)
        factor = per_channel(1 / factor if func in effects.DIVISIONS else factor, chain.call.spatial_dims)
        out = self._execute(func, args, kwargs)
        self.carry(chain, out, chain.scaled(factor))
        return out

    def _view(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        z = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(z, Tensor) or (chain := self.chains.get(z)) is None or chain.call.is_conv or not z.dim():
            return None
        out = self._execute(func, args, kwargs)
        if out is z:
            return out
        if out.dim() and out.dtype == z.dtype and out.shape[-1] == z.shape[-1]:
            self.carry(chain, out, chain.viewed(z.shape, out.shape))
        else:
            self.reads(chain, func)
        return out

    def _parts(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A Linear's channels in several tensors, as of a gate and what it multiplies in one matrix."""
        z = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(z, Tensor) or (chain := self.chains.get(z)) is None or chain.call.is_conv:
            return None
        given = named(("input", "sizes", "dim"), args, kwargs)
        if given.get("dim", 0) not in (-1, z.dim() - 1):
            return None
        out = self._execute(func, args, kwargs)
        self.reads(chain, func)
        start = 0
        for part in out:
            end = start + part.shape[-1]
            if (own := self.part(chain, start, end)) is not None:
                self.begin(own, part)
            start = end
        return out

    def _activation(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        z = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not isinstance(z, Tensor) or (chain := self.chains.get(z)) is None:
            return None
        activation = activation_of(func, args, kwargs)
        if activation is None:
            return None
        chain = replace(chain, activation=activation)
        self.before_activation(chain, z)
        out = self._execute(func, args, kwargs)
        self.closes(chain, out)
        return out

    def closes(self, chain: Chain, out: Tensor) -> None:
        """``chain`` ends in its activation, whose output is ``out``."""
        self.passes(chain)
        self.chains.pop(out, None)  # an in-place activation returns the pre-activation's own object
        self.at_activation(chain, out)

    def carry(self, chain: Chain, out: Tensor, further: Chain) -> None:
        self.passes(chain)
        self.chains[out] = further

    def _one_per_channel(self, chain: Chain, z: Tensor, other: Any) -> Tensor | float | None:
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


_STEPS: dict[Callable, Callable] = {
    **dict.fromkeys(LAYER_CALLS, Carrier._layer),
    F.batch_norm: Carrier._batch_norm,
    torch.batch_norm: Carrier._batch_norm,
    **dict.fromkeys(effects.ADDS, Carrier._add),
    **dict.fromkeys(effects.SUBTRACTIONS, Carrier._sub),
    **dict.fromkeys(effects.SCALES, Carrier._scale),
    **dict.fromkeys(effects.VIEWS, Carrier._view),
    **dict.fromkeys(effects.PARTS, Carrier._parts),
}
