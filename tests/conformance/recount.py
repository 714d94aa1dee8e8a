"""A second implementation of the method, as slow and literal as docs/method.md, and of how networks are observed.

It shares no code with ``exprune``. It only uses module hooks, torch functions that it replaces while it observes a
pass, and autograd:

* Each observed layer passes on its output as a new leaf of the graph. What reaches a ReLU is then differentiated with
  respect to it: ``dz/dy`` is ``a`` of ``z = a * (sum of terms) + b + r``, whatever operations are in between, and is
  the same number at all positions of a channel. A layer whose ``z`` mixes its outputs (attention, normalisation,
  pooling) has no such number.
* A term is what the layer itself returns, without its bias, if all weights but those of one input are zero.
* ``b + r`` is the rest: ``z - a * (sum of all terms)``.
* The decision follows the definition term by term. Stopped outputs are set to 0, and the pass continues with them.

All of this is in float64, so that rounding decides nothing; see `Count.near`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

# Replaced while a pass is observed, in every module that looks up the name.
_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm")
_RELUS = ((F, "relu"), (F, "relu6"), (F, "hardtanh"), (torch, "relu"), (Tensor, "relu"), (Tensor, "relu_"))

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

# Relative distance of a statistic from its bound below which rounding decides on which side it is.
BAND = 1e-9


# Layers


def inputs_dim(module: nn.Module) -> int:
    """The dimension of a layer's weight that belongs to its inputs."""
    return 0 if isinstance(module, (*_TRANSPOSED, Conv1D)) else 1


def weight_of(module: nn.Module) -> Tensor:
    """A layer's weight as (outputs, terms, *kernel)."""
    return module.weight.transpose(0, 1) if inputs_dim(module) == 0 else module.weight


def kind_of(module: nn.Module) -> str:
    """The kind that a site of this layer must have."""
    if not isinstance(module, _CONVOLUTIONS):
        return "linear"
    (name,) = (one.__name__.lower() for one in _CONVOLUTIONS if isinstance(module, one))  # also for subclasses
    return name.replace("convtranspose", "conv_transpose")


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """The dimension of the channels in a layer's input or output."""
    if not isinstance(module, _CONVOLUTIONS):
        return x.dim() - 1
    return x.dim() - module.weight.dim() + 1


def sum_of(module: nn.Module, x: Tensor, inputs: Sequence[int] | None = None) -> Tensor:
    """The contribution of some inputs (None: all) to a layer's outputs: its own forward, without bias."""
    if inputs is None:
        return _forward(module, x, module.weight.data)
    index = torch.tensor(inputs)
    weight = module.weight.data.index_select(inputs_dim(module), index)
    return _forward(module, x.index_select(channel_dim(module, x), index), weight)


def term_of(module: nn.Module, x: Tensor, inputs: Tensor) -> Tensor:
    """The contribution of one input to each output; ``inputs`` has one input for each output."""
    weight, outputs = weight_of(module).detach(), torch.arange(len(inputs))
    kept = torch.zeros_like(weight)
    kept[outputs, inputs] = weight[outputs, inputs]
    return _forward(module, x, kept.transpose(0, 1) if inputs_dim(module) == 0 else kept)


def _forward(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's own forward with another weight and without bias."""
    whole, bias = module.weight.data, getattr(module, "bias", None)
    shift = None if bias is None else bias.data
    try:
        module.weight.data = weight
        if bias is not None:
            bias.data = torch.zeros_like(shift)
        with torch.no_grad():
            return module.forward(x)
    finally:
        module.weight.data = whole
        if bias is not None:
            bias.data = shift


def diagonal(terms: int, positions: int) -> list[int]:
    """The order of a flattened map's terms: each time the next channel and the next position."""
    channels = terms // positions
    return [i % channels * positions + (i % channels + i // channels) % positions for i in range(terms)]


def calling(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """The modules whose own forward calls one of :data:`_LINEAR`, by name, in the order of their calls."""
    found: dict[str, None] = {}
    running: list[str] = []

    def watched(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[running[-1]] = None
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name, module in model.named_modules():
            enter = module.register_forward_pre_hook(lambda module, args, name=name: running.append(name))
            leave = module.register_forward_hook(lambda module, args, out: running.pop() and None, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        for owner in (torch, F):
            for function in _LINEAR:
                if hasattr(owner, function):
                    stack.enter_context(mock.patch.object(owner, function, watched(getattr(owner, function))))
        model(*args, **kwargs)  # with gradients; without them, torch's attention takes a fused path
    return list(found)


# The method


# Of a layer with so many outputs and terms, the order of its terms: (terms,), or one for each output.
Order = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Rule:
    """Stop if ``statistic(m, v, n)`` is below ``bound``. Terms are in their original order, or in a given one."""

    stages: tuple[int, ...]
    statistic: Callable[[Tensor, Tensor, int], Tensor]
    bound: float
    overhead: Callable[[int], int]
    order: Order | None = None


def threshold(tau: float, *stages: int, order: Order | None = None) -> Rule:
    """Stop if m < tau. A test costs one FLOP."""
    return Rule(stages, lambda m, v, n: m, tau, lambda n: 1, order)


def one_order(outputs: int, terms: int) -> Tensor:
    """A random order of a layer's terms."""
    return torch.randperm(terms, generator=torch.Generator().manual_seed(terms))


def each_its_own(outputs: int, terms: int) -> Tensor:
    """A random order of terms for each output."""
    return torch.rand(outputs, terms, generator=torch.Generator().manual_seed(terms)).argsort(1)


def stats_test(tau: float, *stages: int) -> Rule:
    """Stop if m / sqrt(v / n) < Phi^-1(tau); if v is 0, the sign of m decides. A test costs 2 n + 6 FLOPs."""

    def wald(m: Tensor, v: Tensor, n: int) -> Tensor:
        return torch.where(v > 0, m / (v / n).sqrt(), m.sign() * math.inf).nan_to_num(0.0, math.inf, -math.inf)

    return Rule(stages, wald, NormalDist().inv_cdf(tau), lambda n: 2 * n + 6)


@dataclass
class Count:
    """What the method does to the outputs of a layer over all calls; ``near`` counts those that rounding decides."""

    stages: int
    outputs: int = 0
    stopped: list[int] = field(default_factory=list)
    negative: int = 0
    wrong: int = 0
    dense_flops: int = 0
    pruned_flops: int = 0
    near: int = 0

    def __post_init__(self) -> None:
        self.stopped = [0] * self.stages


@dataclass
class _Call:
    """A call of a layer that has not been followed to a ReLU."""

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor


class Recount:
    """Observe passes of a model in eval mode, and prune ``sites`` by ``rule``, if given.

    Attributes:
        counts: Counts by site.
        calls: The calls of each observed layer.
        reached: The calls of each observed layer whose outputs reached a ReLU one by one, with scaled channels.
        beside: By site, whether something other than one number per channel was added to its terms.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        sites: Sequence[str] = (),
        rule: Rule | None = None,
        flattened: Mapping[str, int] | None = None,
    ) -> None:
        self.layers = {name: model.get_submodule(name) for name in layers}
        self.rule = rule
        self.flattened = flattened or {}
        self.counts = {site: Count(len(self._stages(site))) for site in sites} if rule else {}
        self.calls = dict.fromkeys(layers, 0)
        self.reached = dict.fromkeys(layers, 0)
        self.beside = dict.fromkeys(layers, False)
        self._pending: list[_Call] = []
        self._generator = torch.Generator().manual_seed(0)

    @contextmanager
    def __call__(self) -> Iterator["Recount"]:
        """Observe everything that runs inside."""
        with ExitStack() as stack:
            for name, module in self.layers.items():
                hook = module.register_forward_hook(self._layer(name), with_kwargs=True)
                stack.callback(hook.remove)
            for owner, relu in _RELUS:
                stack.enter_context(mock.patch.object(owner, relu, self._relu(getattr(owner, relu))))
            stack.enter_context(torch.enable_grad())
            yield self
        self._pending.clear()

    def _layer(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
            if not isinstance(out, Tensor) or not out.is_floating_point():
                return out  # attention and similar modules, whose outputs are not a layer's
            self.calls[name] += 1
            x = args[0] if args else next(iter(kwargs.values()))
            y = out.detach().requires_grad_()
            self._pending.append(_Call(name, module, x.detach().clone(), y))
            return y.clone()  # a leaf must not be changed in place

        return hook

    def _relu(self, original: Callable) -> Callable:
        def relu(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            before = z.detach().clone()
            out = original(before.clone(), *args, **kwargs)
            given = dict(zip(("min_val", "max_val", "inplace"), args, strict=False)) if original is F.hardtanh else {}
            given |= {"inplace": args[0]} if args and not given else {}
            given |= kwargs
            if z.requires_grad and z.numel() and (original is not F.hardtanh or given.get("min_val", -1.0) == 0):
                out = self._stop(z, before, out)
            if original is Tensor.relu_ or given.get("inplace"):
                z.data.copy_(out)  # others that hold the tensor see the change
            return out

        return relu

    def _stop(self, z: Tensor, before: Tensor, out: Tensor) -> Tensor:
        calls = [call for call in self._pending if call.y.shape == z.shape]
        if not calls:
            return out
        probe = torch.rand(z.shape, generator=self._generator, dtype=z.dtype) + 0.5
        slopes = torch.autograd.grad(z, [call.y for call in calls], probe, retain_graph=True, allow_unused=True)
        mine = []
        for call, slope in zip(calls, slopes, strict=True):
            if slope is None or (a := _per_channel(slope / probe, channel_dim(call.module, z))) is None:
                continue
            self._pending.remove(call)
            self.reached[call.name] += 1
            if call.name in self.counts:
                mine.append((call, a))
        assert len(mine) <= 1, f"{[call.name for call, _ in mine]} are sites of the same ReLU"
        for call, a in mine:
            out = out.masked_fill(self._decide(call, a, before), 0.0)
        return out

    def _decide(self, call: _Call, a: Tensor, z: Tensor) -> Tensor:
        module, count = call.module, self.counts[call.name]
        weight = weight_of(module)
        total, per_term = weight.shape[1], weight[0, 0].numel()
        beside = z - a * sum_of(module, call.x)
        self.beside[call.name] |= not _constant(beside, channel_dim(module, z), scale=z.abs().max())
        # Values that are 0 must not become ties that rounding decides.
        beside = torch.where(beside.abs() < BAND * z.abs().max(), 0.0, beside)

        stopped = torch.zeros_like(z, dtype=torch.bool)
        near = torch.zeros_like(stopped)
        order, terms = self._order(call.name, len(weight), total), []
        spent = 2 * total * per_term * z.numel()
        for stage, n in enumerate(self._stages(call.name)):
            terms += [self._term(module, call.x, order[..., i]) for i in range(len(terms), n)]
            t = torch.stack(terms)
            m = a * t.mean(0) + beside / total
            v = a**2 * t.var(0, correction=0)
            size = (a * t).abs().mean(0) + beside.abs() / total
            v = torch.where(v.sqrt() < BAND * size, 0.0, v)  # equal terms
            stop, low, high = (
                self.rule.statistic(m + e, v, n) < self.rule.bound for e in (0.0, -BAND * size, BAND * size)
            )
            near |= (low != high) & ~stopped
            stop &= ~stopped
            spent += int((~stopped).sum()) * self.rule.overhead(n)
            spent -= int(stop.sum()) * 2 * (total - n) * per_term
            count.stopped[stage] += int(stop.sum())
            stopped |= stop

        count.outputs += z.numel()
        count.negative += int((z <= 0).sum())
        count.wrong += int((stopped & (z > 0)).sum())
        count.dense_flops += 2 * total * per_term * z.numel()
        count.pruned_flops += spent
        count.near += int(near.sum())
        return stopped

    def _stages(self, name: str) -> list[int]:
        return [n for n in self.rule.stages if n < weight_of(self.layers[name]).shape[1]]

    def _order(self, name: str, outputs: int, total: int) -> Tensor:
        if self.rule.order is not None:
            return self.rule.order(outputs, total)
        return torch.tensor(diagonal(total, self.flattened[name])) if name in self.flattened else torch.arange(total)

    @staticmethod
    def _term(module: nn.Module, x: Tensor, inputs: Tensor) -> Tensor:
        return term_of(module, x, inputs) if inputs.dim() else sum_of(module, x, [int(inputs)])


def _per_channel(slope: Tensor, dim: int) -> Tensor | None:
    """The slope of each channel, to broadcast; None if a channel has several slopes or none."""
    others = [i for i in range(slope.dim()) if i != dim]
    a = slope.mean(others, keepdim=True)
    return a if bool(a.any()) and _constant(slope, dim) else None


def _constant(values: Tensor, dim: int, scale: Tensor | float | None = None) -> bool:
    """Whether each channel has the same value at all positions."""
    others = [i for i in range(values.dim()) if i != dim]
    spread = values.amax(others) - values.amin(others)
    return bool((spread <= BAND * (values.abs().max() if scale is None else scale)).all())
