"""Which layers feed a ReLU, found by watching one forward pass of the unmodified model."""

import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.chain import Chain
from exprune.core.counting import multiplies
from exprune.core.errors import SettingError
from exprune.core.following import ChainFollower
from exprune.core.layers import LAYER_CALLS, LinearCall, Owner, called_with_any_weight, owner_in
from exprune.core.sites import Site
from exprune.core.torch_calls import call_name, tensors


def find_sites(model: nn.Module, *example: Any, **named_example: Any) -> list[Site]:
    """The layers of the model in the order of their first calls, each a site or with its reason not to be.

    Layers are found by their calls, whatever the class of their modules. Runs ``model(*example, **named_example)``
    once, in eval mode and without gradients; the model is left as it was. A compiled model runs as it was written.

    Raises:
        SettingError: it is no module, its calls cannot be seen (scripted, exported), or it has lazy modules that have
            not run.
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f"find_sites: a {type(model).__name__} is no torch.nn.Module")
    for name, module in model.named_modules():
        if why := _opaque(module):
            raise SettingError(f"{name or type(module).__name__}: {why}")
    training = {module: module.training for module in model.modules()}
    watcher, writes = _Watcher(model), _Writes()
    watcher.writes = writes
    model.eval()
    try:
        with torch.no_grad(), writes, watcher:
            out = model(*example, **named_example)
            watcher.use(out, "the model's output")
            watcher.use_what_is_kept()
            return watcher.sites()
    finally:
        for module, mode in training.items():
            module.training = mode


def _opaque(module: nn.Module) -> str | None:
    """Why nothing can be seen of a module's calls; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted by torch.jit, its calls cannot be seen; pass the eager model"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "exported by torch.export, a graph of operators; pass the module that was exported"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "a lazy module that has not run yet has no weights; run the model once first"
    return None


class _Writes(TorchDispatchMode):
    """Counts how often memory is written to, also by operators that no torch call shows, and under inference mode.

    Operators behind no torch call (of scripted functions, C++ code) are called anew from here, and by that become
    torch calls, which the function mode beside it sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, int] = defaultdict(int)

    def of(self, tensor: Tensor) -> int:
        """How often the memory of a tensor was written to; to be compared while the tensor lives."""
        return self._counts[self._memory(tensor)]

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operators of higher order have none
        for place, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(args[place] if place < len(args) else kwargs.get(argument.name)):
                    self._counts[self._memory(tensor)] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _memory(tensor: Tensor) -> int:
        try:
            return tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):  # sparse, nested, ...
            return id(tensor)


@dataclass
class _Call:
    """What happened to one call's pre-activation: its uses at every stage of its chain."""

    call: LinearCall
    raw: bool = False
    spatial: int = 1
    uses: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    read: list[tuple[Tensor, int]] = field(default_factory=list)  # what the test reads, and in which version
    closed: bool = False
    residual: bool = False
    why: str | None = None  # why it cannot be pruned, where the uses alone do not say it
    added_to: "tuple[str, _Call] | None" = None


@dataclass
class _Layer:
    """A layer, and all calls of it that were seen."""

    module: nn.Module
    kind: str
    terms: int
    weights_per_term: int
    outputs: int = 0
    parameter: str = "weight"
    transposed: bool = False
    calls: list[_Call] = field(default_factory=list)
    why: str | None = None  # why none of its calls can be followed
    hidden: bool = False


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: inputs or constants, through a learned layer or not, how many layers, flattened."""

    data: bool = True
    learned: bool = False
    depth: int = 0
    spatial: int = 1
    kernel_dims: int = 0  # of the layer that it came from last


_UNKNOWN = _Origin()
_CONSTANT = _Origin(data=False)
_NORMALISATIONS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, getattr(F, "rms_norm", None)}
_FLATTENS = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}
# Calls other than those of layers that multiply by weights.
_OTHER_PRODUCTS = set(
    """
    bilinear einsum tensordot inner mv addmv bmm baddbmm addbmm multi_dot chain_matmul multi_head_attention_forward
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell conv_tbc matmul mm addmm
    """.split()
)


class _Watcher(ChainFollower):
    """Records, for every layer call, what its pre-activation goes through and who else reads it."""

    writes: _Writes

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.modules())
        # torch.compile puts a module of its own around the one that it compiles.
        self.names = {
            module: ".".join(part for part in name.split(".") if part != "_orig_mod")
            for name, module in model.named_modules()
        }
        self.layers: dict[str, _Layer] = {}
        self.origins = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.origins[tensor] = _CONSTANT
        self._homes = {
            (tensor.data_ptr(), tensor.shape): module
            for module in model.modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and tensor.dim() > 1 and not tensor.is_meta
        }
        self._calls: dict[int, tuple[LinearCall, _Call]] = {}  # by id; the call is kept, so that its id stays its own

    # Which layer a call belongs to.

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        running = self.running[-1] if self.running else None
        owner = None if running is None else owner_in(running, call)
        elsewhere = None
        if owner is None and (home := self._home(call)) is not None:
            owner, elsewhere = home, f"its weight is used by {self._called(running)}, outside of its own forward"
        if owner is None and not called_with_any_weight(func):
            return None
        if owner is None and running is None:
            return None
        if owner is None:
            owner, elsewhere = Owner(running, "weight"), "its weight is computed anew at each call"
        name = self._name(owner)
        layer = self.layers.get(name)
        if layer is None:
            kernel = call.weight.shape[2:].numel()
            given = owner.parameter, owner.transposed
            layer = _Layer(owner.module, call.kind, call.terms, kernel, call.weight.shape[0], *given)
            self.layers[name] = layer
        origin = self.origins.get(call.input, _UNKNOWN)
        record = _Call(call, not origin.learned, origin.spatial, why=elsewhere)
        record.read.append((call.input, self.version(call.input)))
        layer.calls.append(record)
        self._calls[id(call)] = (call, record)
        return name

    def _home(self, call: LinearCall) -> Owner | None:
        """Whose weight it is, of any module of the model."""
        weight = call.given
        shapes = (weight.shape, weight.shape[::-1]) if weight.dim() == 2 else (weight.shape,)
        homes = [] if weight.is_meta else [self._homes.get((weight.data_ptr(), shape)) for shape in shapes]
        return next((owner_in(home, call) for home in homes if home is not None), None)

    def _name(self, owner: Owner) -> str:
        name = self.names.get(owner.module, "")
        if owner.parameter == "weight" and name:
            return name
        return f"{name}.{owner.parameter}" if name else owner.parameter

    def _called(self, module: nn.Module | None) -> str:
        return (self.names.get(module) or type(module).__name__) if module is not None else "the model"

    # What happens to its pre-activation.

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            inputs = list(tensors((args, kwargs)))
            before = [(tensor, self.version(tensor)) for tensor in inputs]
            origins = [self.origins.get(tensor, _UNKNOWN) for tensor in inputs]
        seen = len(self._calls)
        out = super().__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunction():
            if len(self._calls) == seen:
                self._note_product(func, inputs)
            for tensor in tensors(out):
                if not any(tensor is t and self.version(t) == version for t, version in before):
                    self.origins[tensor] = _origin(func, inputs, origins, tensor, len(self._calls) > seen)
        return out

    def _note_product(self, func: Callable, inputs: list[Tensor]) -> None:
        """List the running module where it multiplies by weights in a call that is not followed."""
        running = self.running[-1] if self.running else None
        if running is None:
            return
        name = call_name(func)
        if isinstance(func, torch._ops.OpOverload) and multiplies(func):
            why = f"computes {name} in scripted or C++ code, whose calls cannot be seen when it is pruned"
            self._unfollowed(running, name, why, inputs, hidden=True)
        elif name in _OTHER_PRODUCTS and _weights(running, inputs):
            self._unfollowed(running, name, f"computes {name}, which is not followed to a ReLU", inputs)

    def _unfollowed(self, module: nn.Module, kind: str, why: str, inputs: list[Tensor], hidden: bool = False) -> None:
        name = self._called(module)
        if name not in self.layers:
            weights = _weights(module, inputs)
            terms = weights[0].shape[1] if weights else inputs[0].shape[-1] if inputs and inputs[0].dim() else 1
            self.layers[name] = _Layer(module, kind, terms, 1, why=why)
        self.layers[name].hidden |= hidden

    def version(self, tensor: Tensor) -> int:
        return self.writes.of(tensor)

    def passes(self, chain: Chain) -> None:
        self._record(chain).uses[chain.stage].append("")

    def reads(self, chain: Chain, func: Callable) -> None:
        self._record(chain).uses[chain.stage].append(call_name(func))

    def use(self, structure: Any, what: str) -> None:
        """Count every pre-activation in ``structure`` as read by ``what``."""
        for tensor in tensors(structure):
            if (chain := self.chains.get(tensor)) is not None:
                self._record(chain).uses[chain.stage].append(what)

    def use_what_is_kept(self) -> None:
        """Count every pre-activation that is still there as read: whoever keeps it may use it."""
        for layer in self.layers.values():
            for record in layer.calls:
                record.read.clear()  # of ours
        if any(self._record(chain).closed for chain in list(self.chains.values())):
            gc.collect()  # what lies in a cycle is not kept
        for tensor in list(self.chains.keys()):
            self.use(tensor, "whatever keeps it after the forward pass")

    def at_relu(self, chain: Chain, out: Tensor) -> None:
        record = self._record(chain)
        if any(self.version(tensor) != version for tensor, version in record.read):
            record.why = record.why or "its input or residual is changed in place before the ReLU"
        record.closed = True
        record.residual = chain.residual is not None
        record.read.clear()

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        depths = [self.origins.get(x, _UNKNOWN).depth for x in (left, right)]
        own, other = (right, left) if depths[1] > depths[0] else (left, right)
        goes_on = self.chains[own]
        self._record(self.chains[other]).added_to = goes_on.name, self._record(goes_on)
        return own

    def constant(self, tensor: Tensor) -> bool:
        return not self.origins.get(tensor, _UNKNOWN).data

    def carry(self, chain: Chain, out: Tensor, further: Chain) -> None:
        super().carry(chain, out, further)
        if further.residual is not None and further.residual is not chain.residual:
            self._record(chain).read.append((further.residual, self.version(further.residual)))

    def in_another_thread(self, module: nn.Module) -> None:
        name = self._called(module)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in self.layers:
            why = "runs in another thread, where its calls cannot be seen"
            self.layers[name] = _Layer(module, *_kind_and_terms(module), why=why)

    def _record(self, chain: Chain) -> _Call:
        return self._calls[id(chain.call)][1]

    # What comes of it.

    def sites(self) -> list[Site]:
        """Every layer that was seen, in the order of their first calls; then those that were not."""
        listed = {layer.module for layer in self.layers.values()}
        for module, name in self.names.items():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module not in listed:
                why = "not seen as a torch call: unused in this pass, fused or scripted"
                self.layers[name] = _Layer(module, *_kind_and_terms(module), why=why)
        return [_site(name, layer) for name, layer in self.layers.items()]


def _weights(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The weights among the inputs of a call; what torch.nn.utils.prune makes of one is no parameter."""
    masked = [value for value in module.__dict__.values() if isinstance(value, Tensor)]
    return [t for t in inputs if t.dim() > 1 and (isinstance(t, nn.Parameter) or any(t is m for m in masked))]


def _kind_and_terms(module: nn.Module) -> tuple[str, int, int]:
    """Of one of torch's own layers: its kind, terms and weights per term."""
    weight = module.weight
    if isinstance(module, nn.Linear):
        return "linear", weight.shape[1], 1
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    kind = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    return kind, weight.shape[0 if transposed else 1], weight.shape[2:].numel()


def _origin(func: Callable, inputs: list[Tensor], origins: list[_Origin], out: Tensor, is_layer: bool) -> _Origin:
    has_parameter = any(isinstance(t, nn.Parameter) for t in inputs)
    learned = any(o.learned for o in origins) or is_layer or (has_parameter and func not in _NORMALISATIONS)
    depth = max((o.depth for o in origins), default=0) + is_layer
    kernel_dims = max((o.kernel_dims for o in origins), default=0)
    spatial = 1
    if is_layer:
        kernel_dims = max(t.dim() - 2 for t in inputs[1:2]) if func in LAYER_CALLS else 0
    elif inputs:
        source = inputs[0]
        image = source.dim() == 4 or (source.dim() in (3, 5) and source.dim() == kernel_dims + 2)
        if func in _FLATTENS and image and out.shape == (source.shape[0], source.shape[1:].numel()):
            spatial = source.shape[2:].numel()
        else:
            spatial = max((o.spatial for t, o in zip(inputs, origins, strict=True) if t.shape == out.shape), default=1)
    return _Origin(any(o.data for o in origins), learned, depth, spatial, max(kernel_dims, 0))


def _site(name: str, layer: _Layer) -> Site:
    calls = layer.calls
    reasons = [_reason(call) for call in calls]
    failed = [reason for reason in reasons if reason is not None]
    reason = layer.why or (failed[0] if failed else None)
    if layer.why is None and failed and len(failed) < len(reasons):
        reason = f"only some of its {len(reasons)} calls can be pruned: {reason}"
    return Site(
        name=name,
        kind=layer.kind,
        terms=layer.terms,
        weights_per_term=layer.weights_per_term,
        relu=bool(calls) and all(call.closed for call in calls),
        residual=any(call.residual for call in calls),
        spatial=calls[0].spatial if calls else 1,
        reason=reason,
        module=layer.module,
        parameter=layer.parameter,
        transposed=layer.transposed,
        outputs=layer.outputs,
        hidden=layer.hidden,
    )


def _closes(call: _Call) -> bool:
    """Whether the call that goes on where this one is added (itself added to another, perhaps) reaches a ReLU."""
    seen = []
    while call.added_to is not None and not any(call is other for other in seen):
        seen.append(call)
        call = call.added_to[1]
    return call.closed


def _reason(call: _Call) -> str | None:
    if call.added_to is not None:
        name = call.added_to[0]
        return f"a shortcut, added to {name}" if _closes(call) else f"is added to {name}, and the sum feeds no ReLU"
    if not call.closed:
        last = call.uses[max(call.uses)] if call.uses else [""]
        if last[0] == "batch_norm":
            return "its BatchNorm uses the statistics of the batch, or normalises something else than its channels"
        return call.why or (f"feeds {last[0]}, not a ReLU" if any(last) else "feeds no ReLU")
    for uses in call.uses.values():
        if len(uses) > 1:
            others = sorted({use for use in uses if use}) or ["another operation"]
            return f"its pre-activation is also read by {', '.join(others)}"
    if call.call.unsupported is not None:
        return call.call.unsupported
    if call.why is not None:
        return call.why
    if call.raw:
        return f"reads the raw input ({call.call.terms} terms)"
    return None
