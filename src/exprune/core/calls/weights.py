"""Whose weight a call uses: a parameter, a part of one, or what parameters make (docs/method.md, section 1).

A call belongs to the layer whose weight it uses, whatever module runs. A weight is told by its memory: a parameter as
it is stored, transposed, or a part of it (an expert of a stack, a relation, some rows). What a module computes from
parameters alone at each call (parametrizations, standardised, low-rank, masked weights) is told by how it is computed.
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
    """Some numbers of a stored tensor: their shape, their strides, and how far behind its first number they begin."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def of(self, stored: Tensor) -> Tensor:
        return stored.as_strided(self.shape, self.strides, stored.storage_offset() + self.start)


@dataclass(frozen=True)
class Made:
    """A weight that is computed from parameters alone at each call.

    Attributes:
        how: tells it from what is computed in another way, in every pass and process.
        roots: the parameters and buffers that it is computed from: name, module and name in the module.
        value: it, as it was when its layer was found.
    """

    how: str
    roots: tuple[tuple[str, nn.Module, str], ...] = field(compare=False, repr=False)
    value: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Weight:
    """Whose weight one is.

    Attributes:
        module: that keeps it; of one that is computed, that uses it.
        parameter: what the module calls it.
        transposed: whether it is kept as (terms, outputs).
        part: which part of the parameter it is; None: all of it.
        made: how it is computed; None: it is stored.
    """

    module: nn.Module
    parameter: str
    transposed: bool = False
    part: Part | None = None
    made: Made | None = None


def stored_in(module: nn.Module, call: LinearCall) -> Weight | None:
    """The parameter of ``module`` itself that is the weight of a call, or that it is part of; None: of none."""
    found = None
    for name, stored in _tensors_of(module):
        if (relation := _relation(stored, call)) is not None:
            transposed, part = relation
            if part is None:
                return Weight(module, name, transposed)
            found = found or Weight(module, name, part=part)
    return found


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a module itself keeps, by name."""
    yield from ((name, p) for name, p in module._parameters.items() if p is not None)
    yield from ((name, b) for name, b in module._buffers.items() if b is not None)
    # What torch.nn.utils.prune and functional_call put in a parameter's place.
    yield from ((name, value) for name, value in module.__dict__.items() if isinstance(value, Tensor))


def memory_of(tensor: Tensor) -> int | None:
    """Which memory a tensor lies in; None of one that has none of its own (sparse, nested, wrapping others)."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def part_name(parameter: str, stored: Tensor, part: Part) -> str:
    """A part as one would write it: ``stacked[2]``, ``weight[0:64]``; else by the numbers where it begins and ends."""
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
    """Which tensors of a pass are computed from parameters alone, each by how it is computed.

    Args:
        roots: parameters and buffers, by name.
        version: a number that is another one once a tensor's memory was written to, where that is watched.
    """

    def __init__(
        self, roots: Mapping[str, tuple[nn.Module, str]], version: Callable[[Tensor], int] = lambda tensor: 0
    ) -> None:
        self._roots, self._version = roots, version
        self._names: dict[int, str] = {}
        self._how = WeakTensorKeyDictionary()  # how, and from which roots
        for name, (module, parameter) in roots.items():
            if (tensor := stored_now(module, parameter)) is not None:
                self._names[id(tensor)] = name

    def known(self, args: tuple, kwargs: dict) -> "dict[int, _How | None]":
        """What is known of the tensors that a call is given, before it runs, by their ids."""
        return {id(x): self._known(x) for x in tensors((args, kwargs))}

    def note(self, func: Callable, args: tuple, kwargs: dict, out: Any, known: "dict[int, _How | None]") -> None:
        """Follow what a torch call has made of its arguments, of which so much was :meth:`known`."""
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
        """From which parameters and buffers alone a tensor was computed; none where anything else entered it."""
        known = self._known(tensor)
        return known.roots if known is not None and id(tensor) not in self._names else frozenset()

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, a buffer or computed from such alone."""
        return self._known(tensor) is not None

    def how(self, call: LinearCall) -> str | None:
        """How the weight of a call was computed; None where it is stored, or something else entered it."""
        if not self.roots(call.given):
            return None
        return str(self._how[call.given].digest) + ("" if call.weight is call.given else " transposed")

    def made(self, call: LinearCall) -> Made | None:
        """What is to be known of a weight that was computed from parameters alone."""
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
    """An argument of a call, alike in every pass and process."""
    if isinstance(value, Tensor):
        return of.digest if (of := known[id(value)]) is not None else ""
    if isinstance(value, list | tuple):
        return f"({', '.join(_written(item, known) for item in value)})"
    if isinstance(value, torch.device):
        return ""  # a model may move
    simple = isinstance(value, bool | int | float | complex | str | slice | torch.dtype | None | type(...))
    return repr(value) if simple else type(value).__name__


def name_of_made(made: Made, names: Mapping[nn.Module, str], module: nn.Module) -> tuple[str, str]:
    """What a computed weight is called: ``weight`` where it is made of that, else by all that it is made of."""
    own = f"{names.get(module, '')}." if names.get(module) else ""
    shown = [name.removeprefix(own).removeprefix("parametrizations.") for name, _, _ in made.roots]
    if any(name == "weight" or name.startswith("weight.") or name in _WEIGHT_IN_PARTS for name in shown):
        return own.removesuffix("."), "weight"
    return own + "+".join(shown), "+".join(shown)


def can_run(module: nn.Module) -> bool:
    """Whether a module has a forward; lists of parameters have none, and whose part they are uses what they keep."""
    return type(module).forward is not nn.Module.forward


def stored_now(module: nn.Module, parameter: str) -> Tensor | None:
    """What a module keeps under a name, without computing it."""
    for place in (module._parameters, module._buffers, module.__dict__):
        if isinstance(value := place.get(parameter), Tensor):
            return value
    return None


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """The masks of a module's weights that static pruning keeps beside them, by parameter.

    As ``torch.nn.utils.prune`` does, in a buffer ``<parameter>_mask``, and ``torch.ao.pruning``, in a parametrization.
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
    """Whether the weight of a call is ``stored`` transposed, and which part of it; None where it is another's."""
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
    """Sizes and strides, where a stride tells something."""
    return tuple((size, stride if size > 1 else 0) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _extent(tensor: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


_WEIGHT_IN_PARTS = {"weight_g", "weight_v", "weight_orig"}  # of torch.nn.utils' weight and spectral norm
