"""The spellings of ReLU: calls that map every z <= 0 to 0 and every z > 0 to z, up to one ceiling."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import named


def relu_ceiling(func: Callable, args: tuple, kwargs: dict) -> float | None:
    """The largest value that this call, one of :data:`RELU_CALLS`, gives, infinite of most; None: it is no ReLU."""
    if func in _PLAIN:
        return 6.0 if func is F.relu6 else math.inf
    names = _SETTINGS[func]
    given = named(names, args, {_NAMES.get(name, name): value for name, value in kwargs.items()})
    if func in _MAXIMUMS:
        other = given.get("other")
        # Of torch.max(z, dim) the second argument is no tensor.
        relu = isinstance(other, Tensor) and _is_zero(other) and other.numel() <= given["input"].numel()
        return math.inf if relu else None
    if func in _THRESHOLDS:
        return math.inf if _is_zero(given.get("threshold")) and _is_zero(given.get("value")) else None
    if func in _LEAKY:
        return math.inf if _is_zero(given.get("negative_slope", 0.01)) else None
    low, high = (-1.0, 1.0) if func in _HARDTANHS else (None, None)
    return _ceiling(given.get("max", high)) if _is_zero(given.get("min", low)) else None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_meta and not bool(value.any())
    return isinstance(value, Real) and value == 0


def _ceiling(value: Any) -> float | None:
    """One number above 0, infinite where none is given; None of anything else, as of one for each neuron."""
    if value is None:
        return math.inf
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 and not value.is_meta else None
    return float(value) if isinstance(value, Real) and 0 < float(value) <= math.inf else None


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
