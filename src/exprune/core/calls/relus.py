"""The spellings of ReLU: calls that map every z <= 0 to 0 and every z > 0 to something positive."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import named


def is_relu(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether this call, one of :data:`RELU_CALLS`, is a ReLU."""
    if func in _PLAIN:
        return True
    names = _SETTINGS[func]
    given = named(names, args, {_NAMES.get(name, name): value for name, value in kwargs.items()})
    if func in _MAXIMUMS:
        other = given.get("other")
        # Of torch.max(z, dim) the second argument is no tensor.
        return isinstance(other, Tensor) and _is_zero(other) and other.numel() <= given["input"].numel()
    if func in _THRESHOLDS:
        return _is_zero(given.get("threshold")) and _is_zero(given.get("value"))
    if func in _LEAKY:
        return _is_zero(given.get("negative_slope", 0.01))
    low, high = given.get("min", -1.0 if func in _HARDTANHS else None), given.get("max")
    return _is_zero(low) and _is_above_zero(high)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_meta and not bool(value.any())
    return isinstance(value, Real) and value == 0


def _is_above_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_meta and bool((value > 0).all())
    return value is None or (isinstance(value, Real) and 0 < float(value) <= math.inf)


def _all(*names: str) -> set[Callable]:
    return {f for owner in (torch, Tensor, F) for name in names if (f := getattr(owner, name, None)) is not None}


_NAMES = {"self": "input", "min_val": "min", "max_val": "max"}
_PLAIN = _all("relu", "relu_", "relu6")
_MAXIMUMS = _all("maximum", "max")
_THRESHOLDS = _all("threshold", "threshold_")
_LEAKY = _all("leaky_relu", "leaky_relu_")
_HARDTANHS = _all("hardtanh", "hardtanh_")
_CLAMPS = _all("clamp", "clamp_", "clip", "clip_")
_CLAMP_MINS = _all("clamp_min", "clamp_min_")
_SETTINGS: dict[Callable, tuple[str, ...]] = {
    **dict.fromkeys(_MAXIMUMS, ("input", "other")),
    **dict.fromkeys(_THRESHOLDS, ("input", "threshold", "value")),
    **dict.fromkeys(_LEAKY, ("input", "negative_slope")),
    **dict.fromkeys(_HARDTANHS, ("input", "min", "max")),
    **dict.fromkeys(_CLAMPS, ("input", "min", "max")),
    **dict.fromkeys(_CLAMP_MINS, ("input", "min")),
}
RELU_CALLS = frozenset(_PLAIN | _SETTINGS.keys())
