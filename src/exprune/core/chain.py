"""Following a pre-activation from its linear layer to its ReLU, through torch calls alone.

A :class:`ChainFollower` sees every torch call of an eager forward pass. It tags the output of a watched
layer's ``linear`` or ``conv2d``, carries the tag through eval-mode BatchNorm and additions, and reports the
ReLU that receives it. No module is replaced; the hooks that tell which layer is running go with the context.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class LinearCall:
    """One call of a Linear or Conv2d: what its partial sums are computed from.

    ``sums`` are those after each stage, where the call was computed by way of them.
    """

    input: Tensor
    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    sums: tuple[Tensor, ...] = ()

    @property
    def is_conv(self) -> bool:
        return self.weight.dim() == 4

    @property
    def channel_dim(self) -> int:
        """Where the channels stand, of the input and of the output."""
        return -3 if self.is_conv else -1


@dataclass(frozen=True)
class Chain:
    """A pre-activation on its way: ``z = scale * (sum of terms) + shift + residual``.

    ``scale`` and ``shift`` hold one value per output channel, shaped to broadcast over ``z``; None is 1 or 0.
    ``stage`` counts the steps behind it.
    """

    name: str
    call: LinearCall
    scale: Tensor | None = None
    shift: Tensor | float | None = None
    residual: Tensor | None = None
    stage: int = 0

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

    def plus(self, other: Tensor | float) -> "Chain":
        """The chain after an addition."""
        if isinstance(other, Tensor):
            residual = other if self.residual is None else self.residual + other
            return replace(self, residual=residual, stage=self.stage + 1)
        return replace(self, shift=other if self.shift is None else self.shift + other, stage=self.stage + 1)


@dataclass
class ChainFollower(TorchFunctionMode):
    """The context that follows the chains of ``layers`` (name -> module); subclasses say what to do at a ReLU."""

    layers: Mapping[str, nn.Module]
    chains: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, init=False, repr=False)
    _running: list[str] = field(default_factory=list, init=False, repr=False)
    _hooks: list = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> "ChainFollower":
        for name, module in self.layers.items():
            self._hooks.append(module.register_forward_pre_hook(self._enter_layer(name)))
            self._hooks.append(module.register_forward_hook(self._leave_layer, always_call=True))
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._running.clear()
        self.chains = WeakTensorKeyDictionary()

    def _enter_layer(self, name: str) -> Callable[..., None]:
        return lambda module, args: self._running.append(name)

    def _leave_layer(self, module: nn.Module, args: object, output: object) -> None:
        if self._running:
            self._running.pop()

    # What subclasses decide.

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a torch call of the model."""
        return func(*args, **kwargs)

    def before_relu(self, chain: Chain, z: Tensor) -> None:
        """``chain`` is about to go through a ReLU, which may change its pre-activation ``z`` in place."""

    def at_relu(self, chain: Chain, out: Tensor) -> None:
        """``chain`` has reached a ReLU, whose output is ``out``."""

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two tagged tensors that are added, the one whose chain goes on."""
        return left

    def at_batch_statistics(self, training_mode: bool) -> None:
        """A BatchNorm uses the statistics of the batch: it is in training mode, or keeps no others."""

    def compute(self, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        """The output of a watched layer's call, which ``run`` computes, and what is to be known of it."""
        return run(), call

    # How a tag travels.

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        step = _STEPS.get(func)
        return self.call(func, args, kwargs) if step is None else step(self, func, args, kwargs)

    def _linear(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if not self._running:
            return self.call(func, args, kwargs)
        given = _named(("input", "weight", "bias"), args, kwargs)
        return self._called(LinearCall(given["input"], given["weight"]), given.get("bias"), func, args, kwargs)

    def _conv2d(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if not self._running:
            return self.call(func, args, kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = _named(names, args, kwargs)
        padding = given.get("padding", 0)
        call = LinearCall(
            given["input"],
            given["weight"],
            _pair(given.get("stride", 1)),
            padding if isinstance(padding, str) else _pair(padding),
            _pair(given.get("dilation", 1)),
            given.get("groups", 1),
        )
        return self._called(call, given.get("bias"), func, args, kwargs)

    def _called(self, call: LinearCall, bias: Tensor | None, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        out, call = self.compute(call, bias, lambda: self.call(func, args, kwargs))
        self._tag(out, call, bias)
        return out

    def _tag(self, out: Tensor, call: LinearCall, bias: Tensor | None) -> None:
        name = self._running[-1]
        shift = None if bias is None else per_channel(bias, call.is_conv)
        self.chains[out] = Chain(name, call, shift=shift)

    def _batch_norm(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = _named(names, args, kwargs)
        mean, variance = given["running_mean"], given["running_var"]
        of_batch = given.get("training", False) or mean is None
        if of_batch:
            self.at_batch_statistics(training_mode=mean is not None)
        chain = self.chains.get(given["input"])
        if chain is None or of_batch:
            return self.call(func, args, kwargs)
        out = self.call(func, args, kwargs)
        # BatchNorm's channels are dimension 1; of a Linear's output those are its own only where it is a matrix.
        if chain.call.is_conv or out.dim() == 2:
            scale = (variance + given.get("eps", 1e-5)).rsqrt()
            if given.get("weight") is not None:
                scale = scale * given["weight"]
            shift = -mean * scale
            if given.get("bias") is not None:
                shift = shift + given["bias"]
            conv = chain.call.is_conv
            self.chains[out] = chain.affine(per_channel(scale, conv), per_channel(shift, conv))
        return out

    def _add(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        given = _named(("left", "right"), args, {_ADD_NAMES.get(k, k): v for k, v in kwargs.items()})
        left, right = given.get("left"), given.get("right")
        candidates = [x for x in (left, right) if isinstance(x, Tensor) and x in self.chains]
        if not candidates or given.get("alpha", 1) != 1 or given.get("out") is not None:
            return self.call(func, args, kwargs)
        own = self.deeper(left, right) if len(candidates) == 2 and left is not right else candidates[0]
        other = right if own is left else left
        chain, shape = self.chains[own], own.shape
        if func in _IN_PLACE_ADDS and own is not left:
            other = left.clone()  # it is about to become the sum
        out = self.call(func, args, kwargs)
        if left is not right and out.shape == shape:
            self.chains[out] = chain.plus(other)
        return out

    def _relu(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        tensor = args[0] if args else kwargs.get("input", kwargs.get("self"))
        chain = self.chains.get(tensor) if isinstance(tensor, Tensor) else None
        if chain is None or not _is_relu(func, args, kwargs):
            return self.call(func, args, kwargs)
        self.before_relu(chain, tensor)
        out = self.call(func, args, kwargs)
        self.at_relu(chain, out)
        self.chains.pop(out, None)  # an in-place ReLU returns the pre-activation's own object
        return out


def _named(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def per_channel(values: Tensor, is_conv: bool) -> Tensor:
    return values.view(-1, 1, 1) if is_conv else values


def _is_relu(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether this call maps every z <= 0 to 0 and every z > 0 to something positive."""
    if func in _PLAIN_RELUS:
        return True
    if func in _MAXIMUMS:
        given = _named(("input", "other"), args, kwargs)
        other = given.get("other")
        return isinstance(other, Tensor) and not bool(other.any()) and other.numel() <= given["input"].numel()
    if func is F.hardtanh:
        given = _named(("input", "min_val", "max_val"), args, kwargs)
        return given.get("min_val", -1.0) == 0 and given.get("max_val", 1.0) > 0
    given = _named(("input", "min", "max"), args, kwargs)
    low, high = given.get("min"), given.get("max", math.inf)
    return isinstance(low, int | float) and low == 0 and (high is None or high == math.inf)


_ADD_NAMES = {"input": "left", "self": "left", "other": "right"}
_PLAIN_RELUS = {
    F.relu,
    F.relu_,
    F.relu6,
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
}
_MAXIMUMS = {torch.maximum, Tensor.maximum}
_CLAMPS = {
    torch.clamp,
    torch.clamp_,
    torch.clamp_min,
    torch.clamp_min_,
    torch.clip,
    Tensor.clamp,
    Tensor.clamp_,
    Tensor.clamp_min,
    Tensor.clamp_min_,
    Tensor.clip,
    Tensor.clip_,
}
_IN_PLACE_ADDS = {Tensor.add_, Tensor.__iadd__}
_ADDS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE_ADDS}
_STEPS: dict[Callable, Callable] = {
    F.linear: ChainFollower._linear,
    torch.conv2d: ChainFollower._conv2d,
    F.batch_norm: ChainFollower._batch_norm,
    **dict.fromkeys(_ADDS, ChainFollower._add),
    **dict.fromkeys(_PLAIN_RELUS | _MAXIMUMS | _CLAMPS | {F.hardtanh}, ChainFollower._relu),
}
