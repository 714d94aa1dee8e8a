"""Identify the weight that a call uses: a parameter, a part of one, or computed from parameters (docs/method.md, 1).

A call belongs to the layer whose weight it uses, whichever module is running. A weight is identified by its memory: a
parameter as it is stored, transposed, or a part of it (an expert of a stack, a relation, some rows). A weight that a
module computes from parameters alone at each call (parametrizations; standardised, low-rank or masked weights) is
identified by how it is computed.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.effects import call_name, changes, draws, tensors
from exprune.core.calls.layers import LinearCall


@dataclass(frozen=True)
class Part:
    """A part of a stored tensor: its shape, its strides, and the offset of its first number."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def of(self, stored: Tensor) -> Tensor:
        return stored.as_strided(self.shape, self.strides, stored.storage_offset() + self.start)


@dataclass(frozen=True)
class Made:
    """A weight that is computed from parameters alone at each call.

    Attributes:
        how: A fingerprint of the computation, the same in every pass and process.
        roots: The parameters and buffers that it is computed from: name, module and name in the module.
        value: The weight when its layer was found.
    """

    how: str
    roots: tuple[tuple[str, nn.Module, str], ...] = field(compare=False, repr=False)
    value: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Weight:
    """The identity of a weight.

    Attributes:
        module: The module that stores it; for a computed weight, the module that uses it.
        parameter: Its name in the module.
        transposed: Whether it is stored as (terms, outputs).
        part: The part of the parameter that it is; None means all of it.
        made: How it is computed; None if it is stored.
    """

    module: nn.Module
    parameter: str
    transposed: bool = False
    part: Part | None = None
    made: Made | None = None


def stored_in(module: nn.Module, call: LinearCall) -> Weight | None:
    """The parameter of ``module`` itself that is the weight of a call or contains it; None if there is none."""
    found = None
    for name, stored in _tensors_of(module):
        if (relation := _relation(stored, call)) is not None:
            transposed, part = relation
            if part is None:
                return Weight(module, name, transposed)
            found = found or Weight(module, name, part=part)
    return found


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a module itself stores, by name."""
    yield from ((name, p) for name, p in module._parameters.items() if p is not None)
    yield from ((name, b) for name, b in module._buffers.items() if b is not None)
    # torch.nn.utils.prune and functional_call replace parameters by plain attributes.
    yield from ((name, value) for name, value in module.__dict__.items() if isinstance(value, Tensor))


def memory_of(tensor: Tensor) -> int | None:
    """An id of a tensor's memory; None if it has none of its own (sparse, nested, or wrapping other tensors)."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def part_name(parameter: str, stored: Tensor, part: Part) -> str:
    """A readable name of a part: ``stacked[2]``, ``weight[0:64]``, or else the offsets of its first and last number."""
    index, rest = [], part.start
    for size, stride in zip(stored.shape, stored.stride(), strict=True):
        start, rest = divmod(rest, stride) if stride else (0, rest)
        kept = [n for n, step in zip(part.shape, part.strides, strict=True) if step == stride and n <= size - start]
        index.append((start, kept[0] if kept else None, size))
    chosen = tuple(start if n is None else slice(start, start + n) for start, n, _ in index)
    if not rest and all(start < size for start, _, size in index):
        there = stored[chosen]
        if {*zip(there.shape, there.stride(), strict=True)} == {*zip(part.shape, part.strides, strict=True)}:
            shown = [":" if n == size else f"{start}:{start + n}" if n else f"{start}" for start, n, size in index]
            while shown and shown[-1] == ":":
                shown.pop()
            return f"{parameter}[{','.join(shown)}]" if shown else f"{parameter}.view"
    last = part.start + sum((n - 1) * step for n, step in zip(part.shape, part.strides, strict=True))
    return f"{parameter}.flatten()[{part.start}:{last + 1}]"


@dataclass(frozen=True)
class _How:
    digest: str
    roots: frozenset[str]
    version: int


class MadeOfParameters:
    """Track the tensors of a pass that are computed from parameters alone, and how each is computed.

    Args:
        roots: The parameters and buffers by name.
        version: Returns a number that changes when a tensor's memory is written to, if this is watched.
    """

    def __init__(
        self, roots: Mapping[str, tuple[nn.Module, str]], version: Callable[[Tensor], int] = lambda tensor: 0
    ) -> None:
        self._roots, self._version = roots, version
        self._names: dict[int, str] = {}
        self._how = WeakTensorKeyDictionary()  # the computation and its roots
        for name, (module, parameter) in roots.items():
            if (tensor := stored_now(module, parameter)) is not None:
                self._names[id(tensor)] = name

    def known(self, args: tuple, kwargs: dict) -> "dict[int, _How | None]":
        """What is known of a call's tensor arguments before it runs, by their ids."""
        return {id(x): self._known(x) for x in tensors((args, kwargs))}

    def note(self, func: Callable, args: tuple, kwargs: dict, out: Any, known: "dict[int, _How | None]") -> None:
        """Record what a torch call computed from its arguments; ``known`` is the result of `known` before the call."""
        changed = list(tensors((args, kwargs)))[:1] if changes(func, kwargs) else []
        if None in known.values() or draws(func, args, kwargs):
            for x in changed:
                self._how.pop(x, None)
            return
        made = [x for x in (*tensors(out), *changed) if id(x) not in self._names and (changed or id(x) not in known)]
        if not made:
            return
        written = ", ".join(_written(value, known) for value in (*args, *sorted(kwargs.items())))
        roots = frozenset(itertools.chain.from_iterable(of.roots for of in known.values() if of is not None))
        for place, x in enumerate(made):
            how = f"{call_name(func)}({written})#{place}"
            digest = hashlib.blake2b(how.encode(), digest_size=16).hexdigest()
            self._how[x] = _How(digest, roots, self._version(x))

    def roots(self, tensor: Tensor) -> frozenset[str]:
        """The parameters and buffers that a tensor was computed from; empty if anything else was used."""
        known = self._known(tensor)
        return known.roots if known is not None and id(tensor) not in self._names else frozenset()

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, a buffer, or computed from these alone."""
        return self._known(tensor) is not None

    def how(self, call: LinearCall) -> str | None:
        """A fingerprint of how the weight of a call was computed; None if it is stored or other values were used."""
        if not self.roots(call.given):
            return None
        return str(self._how[call.given].digest) + ("" if call.weight is call.given else " transposed")

    def made(self, call: LinearCall) -> Made | None:
        """A description of a weight that was computed from parameters alone; None for other weights."""
        how = self.how(call)
        if how is None:
            return None
        roots = tuple((name, *self._roots[name]) for name in sorted(self.roots(call.given)))
        return Made(how, roots, call.weight.detach().clone())

    def _known(self, tensor: Tensor) -> "_How | None":
        if (name := self._names.get(id(tensor))) is not None:
            return _How(name, frozenset([name]), 0)
        known: _How | None = self._how.get(tensor)
        return known if known is None or known.version == self._version(tensor) else None


def _written(value: Any, known: "dict[int, _How | None]") -> str:
    """A text for an argument of a call that is the same in every pass and process."""
    if isinstance(value, Tensor):
        return of.digest if (of := known[id(value)]) is not None else ""
    if isinstance(value, list | tuple):
        return f"({', '.join(_written(item, known) for item in value)})"
    if isinstance(value, torch.device):
        return ""  # models may move between devices
    simple = isinstance(value, bool | int | float | complex | str | slice | torch.dtype | None | type(...))
    return repr(value) if simple else type(value).__name__


def name_of_made(made: Made, names: Mapping[nn.Module, str], module: nn.Module) -> tuple[str, str]:
    """The name of a computed weight: ``weight`` if that is among its roots, or else the names of all its roots."""
    own = f"{names.get(module, '')}." if names.get(module) else ""
    shown = [name.removeprefix(own).removeprefix("parametrizations.") for name, _, _ in made.roots]
    if any(name == "weight" or name.startswith("weight.") or name in _WEIGHT_IN_PARTS for name in shown):
        return own.removesuffix("."), "weight"
    return own + "+".join(shown), "+".join(shown)


def can_run(module: nn.Module) -> bool:
    """Whether a module has a forward. Parameter lists have none; the module that owns them uses their weights."""
    return type(module).forward is not nn.Module.forward


def stored_now(module: nn.Module, parameter: str) -> Tensor | None:
    """The tensor that a module stores under a name; nothing is computed."""
    for place in (module._parameters, module._buffers, module.__dict__):
        if isinstance(value := place.get(parameter), Tensor):
            return value
    return None


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """The masks of a module's weights from static pruning, by parameter.

    ``torch.nn.utils.prune`` stores them in a buffer ``<parameter>_mask``, and ``torch.ao.pruning`` in a
    parametrization.
    """
    masks = {
        name.removesuffix("_mask"): mask
        for name, mask in module._buffers.items()
        if name.endswith("_mask") and mask is not None and f"{name.removesuffix('_mask')}_orig" in module._parameters
    }
    for name, steps in getattr(module, "parametrizations", {}).items():
        for step in steps:
            mask = getattr(step, "mask", None)
            if isinstance(mask, Tensor) and mask.shape == steps.original.shape:
                masks[name] = mask if name not in masks else masks[name] * mask
    return masks


def _relation(stored: Tensor, call: LinearCall) -> tuple[bool, Part | None] | None:
    """Whether the weight of a call is ``stored`` transposed, and which part of it; None if it is another weight."""
    weight = call.weight
    if call.given is stored:
        return weight is not stored, None
    if stored.dtype != weight.dtype or (memory := memory_of(stored)) is None or memory_of(weight) != memory:
        return None
    start = int(weight.storage_offset() - stored.storage_offset())
    if start == 0:
        if _layout(weight) == _layout(stored):
            return False, None
        if stored.dim() == 2 and _layout(weight) == _layout(stored)[::-1]:
            return True, None
    end = start + _extent(weight)
    if start < 0 or end > _extent(stored):
        return None
    return False, Part(tuple(weight.shape), tuple(weight.stride()), start)


def _layout(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides; strides of dimensions of size 1 have no meaning and are set to 0."""
    return tuple((size, stride if size > 1 else 0) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _extent(tensor: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


_WEIGHT_IN_PARTS = {"weight_g", "weight_v", "weight_orig"}  # of torch.nn.utils' weight and spectral norm
