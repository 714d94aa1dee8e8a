"""Activations: the elementwise calls and modules that a pre-activation leads to, with all spellings of ReLU."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from exprune.core.calls.effects import functions
from exprune.core.calls.layers import named
from exprune.core.errors import SettingError


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise function after a layer. Two are equal if they have the same name and values on a test grid.

    Attributes:
        name: The name of the call with its settings, or the class of the module.
        function: Computes it for a tensor of any shape and floating type, without changing the tensor.
        relu: Whether it maps every z <= 0 to 0 and every z > 0 to z, possibly up to a ceiling.
        rectifies: Whether it maps every z <= 0 to 0, such as ReLU or its square.
        module: The module, if the activation is a module without a torch call of its own.
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(repr=False)
    relu: bool = False
    rectifies: bool = False
    module: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def tried(self) -> tuple[float, ...]:
        """The function's values on a test grid."""
        return tuple(self(torch.linspace(-8, 8, 65, dtype=torch.float64)).tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activation) and (self.name, self.tried) == (other.name, other.tried)

    def __hash__(self) -> int:
        return hash((self.name, self.tried))

    def described(self) -> "Activation":
        """A copy without the function, whose class may exist in this process only."""
        description = Activation(self.name, partial(_left_behind, self.name), self.relu, self.rectifies)
        vars(description)["tried"] = self.tried
        return description

    def __call__(self, z: Tensor) -> Tensor:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return self.function(z)


def register_activation(function: Callable) -> None:
    """Treat a torch function as an activation, so that layers before it can be pruned.

    The function must be elementwise in its first argument, such as ``torch.tanh``. Modules without parameters need no
    registration: they are recognised by their behaviour.

    Args:
        function: A function of torch, or a method of ``torch.Tensor``.

    Raises:
        SettingError: If its calls cannot be observed, or if it is not elementwise.

    Example:
        ```python
        register_activation(torch.tanh)
        ```
    """
    name = getattr(function, "__name__", str(function))
    if not callable(function) or isinstance(function, type | nn.Module):
        raise SettingError(f"register_activation: {name} is not a function of torch; a module needs no registration")
    if not _seen(function):
        raise SettingError(
            f"register_activation: {name} is not a function of torch, so its calls cannot be seen; make it a module "
            "without parameters"
        )
    if not _elementwise(function):
        raise SettingError(f"register_activation: {name} is not elementwise: each output must depend on its own input")
    ACTIVATION_CALLS.add(function)


def activation_of(func: Callable, args: tuple, kwargs: dict) -> Activation | None:
    """The activation computed by a call of `ACTIVATION_CALLS`; None if it is no activation with these settings."""
    if func in _RELUS:
        ceiling = _relu_ceiling(func, args, kwargs)
        if ceiling is not None:
            name = "relu" if ceiling == math.inf else f"relu up to {ceiling:g}"
            return Activation(name, partial(_up_to, ceiling), relu=True, rectifies=True)
        if func not in _LEAKY:
            return None
    further = args[1:]  # without the pre-activation, which must not be kept
    settings = {key: value for key, value in kwargs.items() if key not in ("input", "self", "inplace")}
    if any(isinstance(value, Tensor) for value in (*further, *settings.values())):
        return None
    given = [f"{value:g}" if isinstance(value, float) else str(value) for value in (*further, *settings.values())]
    kept = [value for value in given if value not in ("True", "False", "none")]
    name = func.__name__.strip("_") + (f"({', '.join(kept)})" if kept else "")
    return Activation(name, partial(_called, func, further, settings))


def activation_module(module: nn.Module) -> Activation | None:
    """The activation that a module computes; None if it computes none, or if one of its torch calls is recognised
    instead.

    Such a module has no parameters, buffers or submodules, and is elementwise on test values.
    """
    if type(module).__module__.startswith("torch.nn.") or next(module.children(), None) is not None:
        return None
    if module._parameters or module._buffers:
        return None
    try:
        needed = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        return None
    if len(needed) != 1 or needed[0].kind in (needed[0].VAR_POSITIONAL, needed[0].VAR_KEYWORD):
        return None
    alone = copy.copy(module)  # so that our trial calls leave no trace in the module
    try:
        alone.__dict__ = {name: copy.deepcopy(kept) for name, kept in vars(module).items() if "hooks" not in name}
    except Exception:  # it contains something that cannot be copied
        return None

    function = partial(_forward, alone)
    with torch.random.fork_rng(devices=[]):
        if not _elementwise(function) or _ends_in_a_call(function):
            return None
    z = torch.linspace(-20, 20, 401, dtype=torch.float64)
    out = function(z)
    relu = bool(out[-1] > 0) and torch.equal(out, z.clamp(0, float(out[-1])))
    return Activation("relu" if relu else type(module).__name__, function, relu, not out[z <= 0].any(), module)


# The functions of activations are at module level, so that they can be pickled.


def _up_to(ceiling: float, z: Tensor) -> Tensor:
    return z.clamp(0, ceiling)


def _called(func: Callable, further: tuple, settings: dict, z: Tensor) -> Tensor:
    out: Tensor = func(z.clone(), *further, **settings)
    return out


def _forward(module: nn.Module, z: Tensor) -> Tensor:
    out: Tensor = type(module).forward(module, z.clone())
    return out


def _left_behind(name: str, z: Tensor) -> Tensor:
    raise SettingError(f"{name}: a pickled result has no model; call find_sites on the model")


def _ends_in_a_call(function: Callable) -> bool:
    """Whether its return value is the output of a recognised activation call."""
    with torch.no_grad(), _Calls() as calls:
        out = function(torch.zeros(2))
    return any(
        func in ACTIVATION_CALLS and result is out and activation_of(func, args, kwargs) is not None
        for func, args, kwargs, result in calls.seen
    )


def _elementwise(function: Callable) -> bool:
    """Whether each output depends on its own input only, is reproducible, and is not linear."""
    z = torch.linspace(-6, 6, 48, dtype=torch.float64)
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            out = function(z.clone())
            if not isinstance(out, Tensor) or out.shape != z.shape or out.dtype != z.dtype or torch.equal(out, z):
                return False
            backwards = function(z.flip(0).clone()).flip(0)
            some = function(z[::5].clone().view(2, 5))
            if out.diff().diff().abs().max() < 1e-9:  # linear functions are followed as part of the sum
                return False
            return all(
                torch.allclose(one, other, rtol=1e-9, atol=1e-12)
                for one, other in ((out, function(z.clone())), (out, backwards), (out[::5], some.flatten()))
            ) and bool(out.isfinite().all())
    except Exception:  # the function may not accept such an input
        return False


def _seen(function: Callable) -> bool:
    """Whether our contexts are notified of calls of this function."""
    try:
        with torch.no_grad(), _Calls() as calls:
            function(torch.zeros(2))
    except Exception:  # it does not accept a tensor
        return False
    return any(func is function for func, *_ in calls.seen)


class _Calls(TorchFunctionMode):
    """Record the torch calls inside the context, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, args, kwargs or {}, out))
        return out


def _relu_ceiling(func: Callable, args: tuple, kwargs: dict) -> float | None:
    """The largest value that this ReLU call can return, infinite for most; None if it is not a ReLU."""
    if func in _PLAIN:
        return 6.0 if func is F.relu6 else math.inf
    names = _SETTINGS[func]
    given = named(names, args, {_NAMES.get(name, name): value for name, value in kwargs.items()})
    if func in _MAXIMUMS:
        other = given.get("other")
        # In torch.max(z, dim), the second argument is not a tensor.
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
    """A single number above 0, infinite if none is given; None for anything else, such as one value per neuron."""
    if value is None:
        return math.inf
    if isinstance(value, Tensor):
        value = float(value) if value.numel() == 1 and not value.is_meta else None
    return float(value) if isinstance(value, Real) and 0 < float(value) <= math.inf else None


_NAMES = {"self": "input", "min_val": "min", "max_val": "max"}
_PLAIN = functions("relu", "relu_", "relu6")
_MAXIMUMS = functions("maximum", "max")
_THRESHOLDS = functions("threshold", "threshold_")
_LEAKY = functions("leaky_relu", "leaky_relu_")
_HARDTANHS = functions("hardtanh", "hardtanh_")
_CLAMPS = functions("clamp", "clamp_", "clip", "clip_")
_CLAMP_MINS = functions("clamp_min", "clamp_min_")
_SETTINGS: dict[Callable, tuple[str, ...]] = {
    **dict.fromkeys(_MAXIMUMS, ("input", "other")),
    **dict.fromkeys(_THRESHOLDS, ("input", "threshold", "value")),
    **dict.fromkeys(_LEAKY, ("input", "negative_slope")),
    **dict.fromkeys(_HARDTANHS, ("input", "min", "max")),
    **dict.fromkeys(_CLAMPS, ("input", "min", "max")),
    **dict.fromkeys(_CLAMP_MINS, ("input", "min")),
}
_RELUS = frozenset(_PLAIN | _SETTINGS.keys())
ACTIVATION_CALLS = set(_RELUS) | functions(
    *"gelu silu silu_ mish mish_ hardswish hardswish_ elu elu_ celu celu_ selu selu_ softplus".split()
)
