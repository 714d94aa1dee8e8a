"""Recognise torch calls that are linear layers, and read their arguments.

A layer is recognised by its call, not by the class of its module. Any module that calls ``linear``, ``addmm``, a matrix
product or a convolution with weights of its own is a layer (docs/method.md, section 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer: everything that its partial sums are computed from.

    Attributes:
        kind: ``linear``, ``conv1d``, ``conv2d``, ``conv3d``, or ``conv_transpose1d``, ``2d``, ``3d``.
        input: The input (..., terms) or (..., terms, *space).
        weight: The weight (outputs, terms, *kernel); for a transposed convolution (terms, outputs, *kernel).
        given: The weight argument of the call; ``weight`` may be its transposed view.
        bias: One number per output, or one for all; None without a bias.
        stride: The stride of a convolution, for each dimension.
        padding: The padding of a convolution, for each dimension, or ``same`` or ``valid``.
        dilation: The dilation of a convolution, for each dimension.
        groups: The groups of a convolution.
        sums: The partial sums after each stage, if the call was computed from them.
        unsupported: Why such a call cannot be pruned; None if it can.
    """

    kind: str
    input: Tensor
    weight: Tensor
    given: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    sums: tuple[Tensor, ...] = ()
    unsupported: str | None = None

    @property
    def spatial_dims(self) -> int:
        """The number of dimensions of the kernel; 0 for a Linear."""
        return self.weight.dim() - 2

    @property
    def is_conv(self) -> bool:
        return self.spatial_dims > 0

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels in the input and the output."""
        return -1 - self.spatial_dims

    @property
    def transposed_conv(self) -> bool:
        return self.kind.startswith("conv_transpose")

    @property
    def terms(self) -> int:
        return self.weight.shape[0 if self.transposed_conv else 1]

    @property
    def column_flops(self) -> int:
        """FLOPs that one number of the input takes part in, averaged over an image. Not for transposed convolutions."""
        each = 2 * (self.weight.shape[0] // self.groups) * self.weight.shape[2:].numel()
        space, kernel = self.input.shape[self.input.dim() - self.spatial_dims :], self.weight.shape[2:]
        if self.padding == "same":
            outputs = space.numel()
        else:
            sides = (0,) * self.spatial_dims if isinstance(self.padding, str) else self.padding
            reach = (apart * (size - 1) for apart, size in zip(self.dilation, kernel, strict=True))
            places = zip(space, sides, reach, self.stride, strict=True)
            outputs = math.prod((size + 2 * side - far - 1) // step + 1 for size, side, far, step in places)
        return each * outputs // max(space.numel(), 1)


def layer_call(func: Callable, args: tuple, kwargs: dict) -> LinearCall | None:
    """The call as that of a linear layer; None if it is not one."""
    parse = _PARSERS.get(func)
    return None if parse is None else parse(func, args, kwargs)


def called_with_any_weight(func: Callable) -> bool:
    """Whether such a call is a layer with any weight. Other calls are layers only if the weight is a parameter."""
    return func is F.linear or func in _CONVOLUTIONS


def named(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def per_channel(values: Tensor, spatial_dims: int) -> Tensor:
    """One value per output channel, shaped to broadcast over the output of a layer."""
    return values.reshape(-1, *(1,) * spatial_dims)


def _linear(func: Callable, args: tuple, kwargs: dict) -> LinearCall:
    given = named(("input", "weight", "bias"), args, kwargs)
    weight = given["weight"]
    unsupported = None if weight.dim() == 2 else "its weight is not a matrix"
    return LinearCall("linear", given["input"], _matrix(weight), weight, given.get("bias"), unsupported=unsupported)


def _addmm(func: Callable, args: tuple, kwargs: dict) -> LinearCall:
    given = named(("input", "mat1", "mat2"), args, {"input" if k == "self" else k: v for k, v in kwargs.items()})
    bias, weight = given["input"], given["mat2"]
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1 and bias.numel() in (1, weight.shape[-1])
    unsupported = None if plain else "its addmm scales the product, or adds a matrix"
    return LinearCall("linear", given["mat1"], weight.t(), weight, bias if plain else None, unsupported=unsupported)


def _product(func: Callable, args: tuple, kwargs: dict) -> LinearCall | None:
    names = ("input", "weight")
    given = named(names, args, {{"self": "input"}.get(k, "weight"): v for k, v in kwargs.items() if k != "out"})
    x, weight = given.get("input"), given.get("weight")
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 2 or "out" in kwargs:
        return None
    return LinearCall("linear", x, weight.t(), weight)


def _matrix(weight: Tensor) -> Tensor:
    return weight if weight.dim() >= 2 else weight[None]


def _convolution(func: Callable, args: tuple, kwargs: dict) -> LinearCall:
    transposed = func in _TRANSPOSED
    names: tuple[str, ...] = ("input", "weight", "bias", "stride", "padding")
    names += ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = named(names, args, kwargs)
    weight, padding, groups = given["weight"], given.get("padding", 0), given.get("groups", 1)
    dims = weight.dim() - 2
    unsupported = "transposed convolution" if transposed else None
    if groups != 1:
        unsupported = f"grouped convolution ({groups} groups)"
    return LinearCall(
        func.__name__,
        given["input"],
        weight,
        weight,
        given.get("bias"),
        _each(given.get("stride", 1), dims),
        padding if isinstance(padding, str) else _each(padding, dims),
        _each(given.get("dilation", 1), dims),
        groups,
        unsupported=unsupported,
    )


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """One value for each spatial dimension."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)


_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_CONVOLUTIONS: set[Callable] = {torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED}
_PRODUCTS: set[Callable] = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_PARSERS: dict[Callable, Callable] = {
    F.linear: _linear,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
}
LAYER_CALLS = frozenset(_PARSERS)
