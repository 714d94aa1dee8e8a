"""Which layers feed a ReLU, found by watching one forward pass of the unmodified model."""

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.chain import Chain, ChainFollower
from exprune.core.errors import SettingError


@dataclass(frozen=True)
class Site:
    """A Linear or Conv2d layer of a model, and whether the neurons it computes can be stopped early.

    Attributes:
        name: the module's name in the model.
        kind: ``linear`` or ``conv2d``.
        terms: N, the input channels whose contributions a neuron sums.
        weights_per_term: K, multiply-adds per term: 1, or the kernel's area.
        relu: whether its output reaches a ReLU through nothing but BatchNorm and additions.
        residual: whether another tensor is added on the way.
        spatial: positions per channel where the input is a flattened feature map, else 1.
        reason: why it cannot be pruned; None where it can.
    """

    name: str
    kind: str
    terms: int
    weights_per_term: int
    relu: bool
    residual: bool = False
    spatial: int = 1
    reason: str | None = None
    module: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def eligible(self) -> bool:
        return self.reason is None

    @property
    def mask(self) -> Tensor | None:
        """The weights that static pruning left, bool in the weight's shape; None where it removed none.

        As ``torch.nn.utils.prune`` keeps it; ``prune.custom_from_mask(module, "weight", module.weight != 0)`` makes
        one of weights that are zero already.
        """
        mask = getattr(self.module, "weight_mask", None)
        return None if mask is None or bool(mask.all()) else mask != 0

    @property
    def dense_flops(self) -> int:
        """FLOPs of one output, ``2 * N * K``."""
        return 2 * self.terms * self.weights_per_term

    def order(self) -> Tensor | None:
        """The order in which terms are evaluated; None: as they stand.

        The inputs of a flattened feature map lie position by position, one channel after the other, so the
        first ones are neighbours and no sample. They are taken diagonally: the next channel and the next
        position each time.
        """
        if self.spatial == 1:
            return None
        channels = self.terms // self.spatial
        index = torch.arange(self.terms)
        channel = index % channels
        return channel * self.spatial + (channel + index // channels) % self.spatial


def find_sites(model: nn.Module, *example: Any, **named_example: Any) -> list[Site]:
    """Every Linear and Conv2d of the model in the order of their first calls, each a site or with its reason not to be.

    Runs ``model(*example, **named_example)`` once, in eval mode and without gradients; the model is left as it was.

    Raises:
        SettingError: the model is compiled or scripted, so that its calls cannot be seen.
    """
    _refuse_opaque(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    training = {module: module.training for module in model.modules()}
    watcher = _Watcher(layers)
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), watcher:  # versions of tensors are needed
            watcher.use(model(*example, **named_example), "the model's output")
            return [_site(name, layers[name], watcher.calls.get(name, [])) for name in watcher.in_call_order()]
    finally:
        for module, mode in training.items():
            module.training = mode


def select_sites(sites: Sequence[Site], patterns: Sequence[str] | str | None) -> list[Site]:
    """Restrict pruning to the sites that match a name or a wildcard; the others stay, with that as their reason.

    Raises:
        SettingError: a pattern matches no eligible site.
    """
    if patterns is None:
        return list(sites)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    eligible = [site.name for site in sites if site.eligible]
    for pattern in patterns:
        if not matching(pattern, eligible):
            given = [f"{s.name} cannot be pruned: {s.reason}" for s in sites if matching(pattern, [s.name])]
            why = given[0] if given else "no site of that name"
            raise SettingError(f"sites: {pattern!r}: {why}; eligible are {', '.join(eligible) or 'none'}")
    return [
        site
        if not site.eligible or any(matching(pattern, [site.name]) for pattern in patterns)
        else replace(site, reason="not selected")
        for site in sites
    ]


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that are the pattern or match it as a wildcard (``*``, ``?``, ``[0-3]``)."""
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _refuse_opaque(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name or type(module).__name__}"
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise SettingError(f"{where}: compiled by torch.compile, its calls cannot be seen; pass the eager model")
        if isinstance(module, torch.jit.ScriptModule):
            raise SettingError(f"{where}: scripted by torch.jit, its calls cannot be seen; pass the eager model")


@dataclass
class _Call:
    """What happened to one call's pre-activation: its uses at every stage of its chain."""

    raw: bool
    groups: int
    terms: int
    spatial: int
    uses: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    versions: list[tuple[Tensor, int]] = field(default_factory=list)
    closed: bool = False
    residual: bool = False
    why: str | None = None  # why the chain ended, where the use alone does not say it
    added_to: str | None = None


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: through a learned layer or not, behind how many linear layers, flattened or not."""

    learned: bool = False
    depth: int = 0
    spatial: int = 1


_EXAMPLE = _Origin()
_NORMALISATIONS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, getattr(F, "rms_norm", None)}
# Calls that read a tensor's shape alone.
_SHAPE_ONLY = {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, Tensor.new_zeros, Tensor.new_ones}
_FLATTENS = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}


class _Watcher(ChainFollower):
    """Records, for every layer call, what its pre-activation goes through and who else reads it."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.calls: dict[str, list[_Call]] = {}
        self.origins = WeakTensorKeyDictionary()
        self.by_chain: dict[int, tuple[Chain, _Call]] = {}  # by id; the chain is kept, so that its id stays its own

    def in_call_order(self) -> list[str]:
        return [*self.calls, *(name for name in self.layers if name not in self.calls)]

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs)))
        before = [(t, _version(t), self.chains.get(t)) for t in inputs]
        origins = [self.origins.get(t, _EXAMPLE) for t in inputs]
        out = super().__torch_function__(func, types, args, kwargs)
        outputs = list(_tensors(out))
        self._follow_uses(func, before, outputs)
        for tensor in outputs:
            if not any(tensor is t and _version(t) == version for t, version, _ in before):
                self.origins[tensor] = self._origin(func, inputs, origins, tensor)
        return out

    def use(self, structure: Any, what: str) -> None:
        """Count every pre-activation in ``structure`` as read by ``what``."""
        for tensor in _tensors(structure):
            if (chain := self.chains.get(tensor)) is not None:
                self._call_of(chain).uses[chain.stage].append(what)

    def at_relu(self, chain: Chain, out: Tensor) -> None:
        call = self._call_of(chain)
        stale = [t for t, version in call.versions if _version(t) != version]
        if stale:
            call.why = "its input or residual is changed in place before the ReLU"
        call.closed = not stale
        call.residual = chain.residual is not None

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        depths = [self.origins.get(x, _EXAMPLE).depth for x in (left, right)]
        own, other = (right, left) if depths[1] > depths[0] else (left, right)
        self._call_of(self.chains[other]).added_to = self.chains[own].name
        return own

    def _tag(self, out: Tensor, call: Any, bias: Tensor | None) -> None:
        super()._tag(out, call, bias)
        chain = self.chains[out]
        origin = self.origins.get(call.input, _EXAMPLE)
        record = _Call(not origin.learned, call.groups, call.weight.shape[1], origin.spatial)
        record.versions.append((call.input, _version(call.input)))
        self.calls.setdefault(chain.name, []).append(record)
        self._keep(chain, record)

    def _keep(self, chain: Chain, record: _Call) -> None:
        self.by_chain[id(chain)] = (chain, record)

    def _call_of(self, chain: Chain) -> _Call:
        return self.by_chain[id(chain)][1]

    def _follow_uses(self, func: Callable, before: list[tuple[Tensor, int, Chain | None]], outputs: list) -> None:
        if func in _SHAPE_ONLY:
            return
        carried = {t: self.chains[t] for t in outputs if t in self.chains}
        for tensor, version, chain in before:
            if chain is None:
                continue
            record = self._call_of(chain)
            moved = [c for c in carried.values() if c.call is chain.call and c.stage == chain.stage + 1]
            if moved:
                if id(moved[0]) not in self.by_chain:
                    self._keep(moved[0], record)
                    if moved[0].residual is not None and moved[0].residual is not chain.residual:
                        record.versions.append((moved[0].residual, _version(moved[0].residual)))
                record.uses[chain.stage].append("")
            elif any(out is tensor for out in outputs) and _version(tensor) == version:
                pass  # the same tensor, untouched: dropout in eval mode, contiguous, ...
            elif outputs or _version(tensor) != version:
                record.uses[chain.stage].append(getattr(func, "__name__", str(func)).strip("_"))
                if _version(tensor) != version and self.chains.get(tensor) is chain:
                    self.chains.pop(tensor, None)

    def _origin(self, func: Callable, inputs: list[Tensor], origins: list[_Origin], out: Tensor) -> _Origin:
        has_parameter = any(isinstance(t, nn.Parameter) for t in inputs)
        is_layer = func in (F.linear, torch.conv2d)
        learned = any(o.learned for o in origins) or is_layer or (has_parameter and func not in _NORMALISATIONS)
        depth = max((o.depth for o in origins), default=0) + is_layer
        spatial = 1
        if not is_layer and inputs:
            source = inputs[0]
            if func in _FLATTENS and source.dim() == 4 and out.shape == (source.shape[0], source[0].numel()):
                spatial = source.shape[2] * source.shape[3]
            else:
                spatial = max(
                    (o.spatial for t, o in zip(inputs, origins, strict=True) if t.shape == out.shape),
                    default=1,
                )
        return _Origin(learned, depth, spatial)


def _site(name: str, module: nn.Module, calls: list[_Call]) -> Site:
    conv = isinstance(module, nn.Conv2d)
    area = module.weight.shape[2] * module.weight.shape[3] if conv else 1
    terms = calls[0].terms if calls else module.weight.shape[1]
    reasons = [_reason(call) for call in calls] or ["not seen as a torch call: unused in this pass, fused or scripted"]
    failed = [reason for reason in reasons if reason is not None]
    reason = failed[0] if failed else None
    if failed and len(failed) < len(reasons):
        reason = f"only some of its {len(reasons)} calls can be pruned: {reason}"
    return Site(
        name=name,
        kind="conv2d" if conv else "linear",
        terms=terms,
        weights_per_term=area,
        relu=bool(calls) and all(call.closed for call in calls),
        residual=any(call.residual for call in calls),
        spatial=calls[0].spatial if calls else 1,
        reason=reason,
        module=module,
    )


def _reason(call: _Call) -> str | None:
    if call.added_to is not None:
        return f"a shortcut, added to {call.added_to}"
    if not call.closed:
        last = call.uses[max(call.uses)] if call.uses else [""]
        if last[0] == "batch_norm":
            return "its BatchNorm uses the statistics of the batch, or normalises something else than its channels"
        return call.why or (f"feeds {last[0]}, not a ReLU" if any(last) else "feeds no ReLU")
    for uses in call.uses.values():
        if len(uses) > 1:
            others = sorted({use for use in uses if use and use not in ("relu", "relu_")}) or ["another operation"]
            return f"its pre-activation is also read by {', '.join(others)}"
    if call.groups != 1:
        return f"grouped convolution ({call.groups} groups)"
    if call.raw:
        return f"reads the raw input ({call.terms} terms)"
    return None


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; an inference tensor (an example input) does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors(structure: Any) -> Iterator[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from _tensors(value)
    elif isinstance(structure, list | tuple):
        for value in structure:
            yield from _tensors(value)
