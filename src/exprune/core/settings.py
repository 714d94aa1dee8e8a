"""Numbers that a user gives: Python's own, numpy's, or tensors with one value."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from exprune.core.errors import SettingError


def plain(value: Any) -> Any:
    """The Python number that ``value`` is: numpy's scalars and tensors of no dimension are; else ``value`` itself."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def whole(value: Any, name: str, wanted: str, right: Callable[[int], bool], of: str = "") -> int:
    """``value`` as an int.

    Raises:
        SettingError: it is no whole number, or not ``right``; the message says whose it is and what is ``wanted``.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or not right(number):
        raise SettingError(f"{name}={' '.join(str(number).split())}{of and f' of {of}'}: {wanted}")
    return number


def real(value: Any, name: str, wanted: str, right: Callable[[float], bool], of: str = "") -> float:
    """``value`` as an int or float, likewise."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not right(number):
        raise SettingError(f"{name}={' '.join(repr(number).split())}{of and f' of {of}'}: {wanted}")
    return number


def plain_knob(value: Any) -> Any:
    """A heuristic's knob in Python's own numbers: one, a list, or a mapping."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:  # of numpy or torch
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return plain(value)
