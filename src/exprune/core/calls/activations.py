"""Activations: the elementwise calls and modules that a pre-activation ends in, ReLU and its spellings among them."""

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
    """An elementwise function behind a layer; equal to another of its name that computes the same where it is tried.

    Attributes:
        name: its call's and what that was set to, or its module's class.
        function: computes it, of a tensor of any shape and floating type, without changing that.
        relu: whether it maps every z <= 0 to 0 and every z > 0 to z, up to one ceiling.
        rectifies: whether it maps every z <= 0 to 0: a ReLU, its square, ...
        module: that is it, where no call of torch is.
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(repr=False)
    relu: bool = False
    rectifies: bool = False
    module: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def tried(self) -> tuple[float, ...]:
        """What it makes of some numbers."""
        return tuple(self(torch.linspace(-8, 8, 65, dtype=torch.float64)).tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activation) and (self.name, self.tried) == (other.name, other.tried)

    def __hash__(self) -> int:
        return hash((self.name, self.tried))

    def described(self) -> "Activation":
        """What is to be said of it, without what computes it, which may be a class that only its own process knows."""
        description = Activation(self.name, partial(_left_behind, self.name), self.relu, self.rectifies)
        vars(description)["tried"] = self.tried
        return description

    def __call__(self, z: Tensor) -> Tensor:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return self.function(z)


def register_activation(function: Callable) -> None:
    """Let layers before this call be sites: a function of torch or method of a tensor that is elementwise in its first
    argument, as ``torch.tanh``. (A module without parameters is taken for an activation where it behaves as one.)

    Raises:
        SettingError: it is none that can be seen, or not elementwise.
    """
    name = getattr(function, "__name__", str(function))
    if not callable(function) or isinstance(function, type | nn.Module):
        raise SettingError(f"register_activation: {name} is no function of torch; a module needs no registration")
    if not _seen(function):
        raise SettingError(
            f"register_activation: {name} is no call of torch, so it cannot be seen; make it a module of its own, "
            "without parameters"
        )
    if not _elementwise(function):
        raise SettingError(f"register_activation: {name} is not elementwise: an output is to depend on its own input")
    ACTIVATION_CALLS.add(function)


def activation_of(func: Callable, args: tuple, kwargs: dict) -> Activation | None:
    """What a call, one of :data:`ACTIVATION_CALLS`, computes; None: with these settings it is no activation."""
    if func in _RELUS:
        ceiling = _relu_ceiling(func, args, kwargs)
        if ceiling is not None:
            name = "relu" if ceiling == math.inf else f"relu up to {ceiling:g}"
            return Activation(name, partial(_up_to, ceiling), relu=True, rectifies=True)
        if func not in _LEAKY:
            return None
    further = args[1:]  # of its pre-activation nothing is kept
    settings = {key: value for key, value in kwargs.items() if key not in ("input", "self", "inplace")}
    if any(isinstance(value, Tensor) for value in (*further, *settings.values())):
        return None
    given = [f"{value:g}" if isinstance(value, float) else str(value) for value in (*further, *settings.values())]
    kept = [value for value in given if value not in ("True", "False", "none")]
    name = func.__name__.strip("_") + (f"({', '.join(kept)})" if kept else "")
    return Activation(name, partial(_called, func, further, settings))


def activation_module(module: nn.Module) -> Activation | None:
    """The activation that a module is, by what it does; None where it is none, or one of its calls tells.

    It has no parameters, buffers or parts, and is elementwise where it is tried.
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
    alone = copy.copy(module)  # what it keeps of a call is not kept of ours
    try:
        alone.__dict__ = {name: copy.deepcopy(kept) for name, kept in vars(module).items() if "hooks" not in name}
    except Exception:  # it has what cannot be copied
        return None

    function = partial(_forward, alone)
    with torch.random.fork_rng(devices=[]):
        if not _elementwise(function) or _ends_in_a_call(function):
            return None
    z = torch.linspace(-20, 20, 401, dtype=torch.float64)
    out = function(z)
    relu = bool(out[-1] > 0) and torch.equal(out, z.clamp(0, float(out[-1])))
    return Activation("relu" if relu else type(module).__name__, function, relu, not out[z <= 0].any(), module)


# Functions of activations, by name, so that they can be pickled.


def _up_to(ceiling: float, z: Tensor) -> Tensor:
    return z.clamp(0, ceiling)


def _called(func: Callable, further: tuple, settings: dict, z: Tensor) -> Tensor:
    out: Tensor = func(z.clone(), *further, **settings)
    return out


def _forward(module: nn.Module, z: Tensor) -> Tensor:
    out: Tensor = type(module).forward(module, z.clone())
    return out


def _left_behind(name: str, z: Tensor) -> Tensor:
    raise SettingError(f"{name}: of a result that was pickled there is no model; find the sites of one")


def _ends_in_a_call(function: Callable) -> bool:
    """Whether what it returns is what one of :data:`ACTIVATION_CALLS` has returned."""
    with torch.no_grad(), _Calls() as calls:
        out = function(torch.zeros(2))
    return any(
        func in ACTIVATION_CALLS and result is out and activation_of(func, args, kwargs) is not None
        for func, args, kwargs, result in calls.seen
    )


def _elementwise(function: Callable) -> bool:
    """Whether it computes each output from its own input, the same each time, and is not the identity."""
    z = torch.linspace(-6, 6, 48, dtype=torch.float64)
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            out = function(z.clone())
            if not isinstance(out, Tensor) or out.shape != z.shape or out.dtype != z.dtype or torch.equal(out, z):
                return False
            backwards = function(z.flip(0).clone()).flip(0)
            some = function(z[::5].clone().view(2, 5))
            if out.diff().diff().abs().max() < 1e-9:  # a line, which the neuron's own sum may go through
                return False
            return all(
                torch.allclose(one, other, rtol=1e-9, atol=1e-12)
                for one, other in ((out, function(z.clone())), (out, backwards), (out[::5], some.flatten()))
            ) and bool(out.isfinite().all())
    except Exception:  # of somebody's forward, for which this is no input
        return False


def _seen(function: Callable) -> bool:
    """Whether a call of this function is one that a context of ours is told of."""
    try:
        with torch.no_grad(), _Calls() as calls:
            function(torch.zeros(2))
    except Exception:  # it takes no tensor
        return False
    return any(func is function for func, *_ in calls.seen)


class _Calls(TorchFunctionMode):
    """Keeps the torch calls inside it, with what they were given and what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, args, kwargs or {}, out))
        return out


def _relu_ceiling(func: Callable, args: tuple, kwargs: dict) -> float | None:
    """The largest value that this call gives, infinite of most; None: it is no ReLU."""
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
