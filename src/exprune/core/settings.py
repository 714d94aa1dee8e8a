"""Check numbers that a user gives: Python's, numpy's, or tensors with one value."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from exprune.core.errors import SettingError


def plain(value: Any) -> Any:
    """Convert numpy scalars and 0-dimensional tensors to Python numbers; return other values unchanged."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def whole(value: Any, name: str, wanted: str, right: Callable[[int], bool], of: str = "") -> int:
    """Convert ``value`` to an int.

    Args:
        value: A number of Python, numpy or torch.
        name: The name of the setting, for the message.
        wanted: The valid values, for the message, such as "a whole number, at least 1".
        right: Whether a number is valid.
        of: The class the setting belongs to, for the message.

    Raises:
        SettingError: If it is not a whole number, or not valid.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or not right(number):
        raise SettingError(f"{name}={' '.join(str(number).split())}{of and f' of {of}'}: must be {wanted}")
    return number


def real(value: Any, name: str, wanted: str, right: Callable[[float], bool], of: str = "") -> float:
    """Convert ``value`` to an int or float; see `whole`."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not right(number):
        raise SettingError(f"{name}={' '.join(repr(number).split())}{of and f' of {of}'}: must be {wanted}")
    return number


def plain_knob(value: Any) -> Any:
    """A heuristic's setting in Python's own numbers: one number, a list, or a mapping."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:  # an array of numpy or torch
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return plain(value)
