"""What torch calls do to their tensors, as far as their names tell."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import named


def tensors(structure: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and dictionaries."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from tensors(value)
    elif isinstance(structure, list | tuple):
        for value in structure:
            yield from tensors(value)


def call_name(func: Callable) -> str:
    """The readable name of a call."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):  # access to an attribute
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return name.partition(".")[0].strip("_")


def describes(func: Callable) -> bool:
    """Whether a call reads no values of its tensors, but only their shape, type or device."""
    if getattr(func, "__name__", "") == "__get__":
        return getattr(func, "__self__", None) in _PROPERTIES
    return func in _DESCRIPTIONS


def changes(func: Callable, kwargs: dict) -> bool:
    """Whether a call changes a tensor in place, by its name and settings."""
    name = getattr(func, "__name__", "").partition(".")[0]
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_NAMES
    return in_place or kwargs.get("out") is not None or kwargs.get("inplace") is True


def draws(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether a call draws random numbers, as some layers do in training mode."""
    name = call_name(func)
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):  # (..., has_biases, layers, dropout, training, ...)
        return len(args) > 6 and args[5] > 0 and bool(args[6])
    if name == "multi_head_attention_forward":
        share = args[11] if len(args) > 11 else kwargs.get("dropout_p", 0)
        return bool(kwargs.get("training", True) and share > 0)
    if name == "scaled_dot_product_attention":
        return bool((args[4] if len(args) > 4 else kwargs.get("dropout_p", 0)) > 0)
    if name in _DROPOUTS:
        given = named(("input", "p", "training"), args, kwargs)
        return bool(given.get("training", True)) and given.get("p", 0.5) > 0
    if name == "rrelu":
        return bool(named(("input", "lower", "upper", "training"), args, kwargs).get("training", False))
    return name in _RANDOM


def keeps_zeros(func: Callable, args: tuple, kwargs: dict, tensor: Tensor) -> bool:
    """Whether the result of a call is exactly 0 wherever ``tensor`` is."""
    left, right = operands(args, kwargs)
    if func not in _ZERO_KEEPING or (left is not tensor and (func in DIVISIONS or func not in SCALES)):
        return False
    if call_name(func) == "pow":
        right = kwargs.get("exponent", right)
        return isinstance(right, int | float) and right > 0
    return True


def operands(args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """The two operands of an arithmetic call."""
    given = named(("left", "right"), args, {_NAMES.get(name, name): value for name, value in kwargs.items()})
    return given.get("left"), given.get("right")


def functions(*names: str) -> set[Callable]:
    """The functions of torch and the methods of tensors with these names."""
    return {f for owner in (torch, Tensor, F) for name in names if (f := getattr(owner, name, None)) is not None}


_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_RANDOM = set("bernoulli rand randn rand_like randn_like normal uniform exponential".split())
_NAMES = {"input": "left", "self": "left", "other": "right"}
_IN_PLACE_NAMES = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")} | {
    "__setitem__",
    "__set__",
}
_PROPERTIES = {
    getattr(Tensor, name)
    for name in """
    shape dtype device ndim requires_grad layout is_cuda is_cpu is_meta is_sparse is_quantized is_nested is_leaf
    is_mkldnn is_mps is_xpu grad grad_fn names itemsize nbytes name _version _base
    """.split()
    if hasattr(Tensor, name)
}
_DESCRIPTIONS = functions(
    *"""
    size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex
    is_signed is_inference is_conj is_neg get_device type __len__ __hash__ __format__ zeros_like ones_like empty_like
    full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full result_type can_cast
    is_same_size has_names is_pinned is_shared
    """.split()
)
IN_PLACE_ADDS = functions("add_", "__iadd__")
ADDS = functions("add", "__add__", "__radd__") | IN_PLACE_ADDS
SUBTRACTIONS = functions("sub", "subtract", "sub_", "subtract_", "__sub__", "__isub__")
DIVISIONS = functions("div", "divide", "true_divide", "div_", "divide_", "true_divide_", "__truediv__", "__itruediv__")
SCALES = functions("mul", "multiply", "mul_", "multiply_", "__mul__", "__rmul__", "__imul__") | DIVISIONS
PARTS = functions("chunk", "split", "tensor_split")
VIEWS = functions("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
_ZERO_KEEPING = SCALES | VIEWS | functions("square", "pow", "__pow__", "pow_", "transpose", "contiguous", "to")
