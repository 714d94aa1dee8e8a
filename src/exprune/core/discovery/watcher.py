"""Watching one forward pass of a model: every layer's calls, what their outputs go through, and who reads them."""

import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.activations import Activation, activation_module
from exprune.core.calls.effects import SCALES, call_name, changes, describes, keeps_zeros, tensors
from exprune.core.calls.formulas import multiplies
from exprune.core.calls.kinds import packed
from exprune.core.calls.layers import LinearCall, called_with_any_weight
from exprune.core.calls.weights import (
    MadeOfParameters,
    Weight,
    can_run,
    memory_of,
    name_of_made,
    part_name,
    stored_in,
    stored_now,
)
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.following import ChainFollower
from exprune.core.discovery.origins import CONSTANT, UNKNOWN, origin_of
from exprune.core.discovery.records import (
    Call,
    Layer,
    add,
    kind_and_terms,
    read_beside_its_parts,
    site_of,
    weights_among,
)
from exprune.core.discovery.sites import Site
from exprune.core.discovery.writes import Writes
from exprune.core.errors import SettingError
from exprune.core.sums.trial import unlike_its_terms

# Calls other than those of layers that multiply by weights.
_OTHER_PRODUCTS = set(
    """
    bilinear einsum tensordot inner mv addmv bmm baddbmm addbmm multi_dot chain_matmul multi_head_attention_forward
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell conv_tbc matmul mm addmm
    grouped_mm scaled_mm scaled_grouped_mm
    """.split()
)

_COMPUTED = "computed weight"  # of a call whose weight is no layer's own


class Watcher(ChainFollower):
    """Records, for every layer call, what its pre-activation goes through and who else reads it."""

    writes: Writes

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.modules())
        # torch.compile puts a module of its own around the one that it compiles.
        self.names = {
            module: ".".join(part for part in name.split(".") if part != "_orig_mod")
            for name, module in model.named_modules()
        }
        self.layers: dict[str, Layer] = {}
        self.origins = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.origins[tensor] = CONSTANT
        self._homes: dict[int, list[nn.Module]] = defaultdict(list)  # by memory, who keeps parameters there
        roots: dict[str, tuple[nn.Module, str]] = {}
        for name, module in model.named_modules():
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    roots[f"{name}.{own}" if name else own] = module, own
                    if (memory := memory_of(tensor)) is not None:
                        self._homes[memory].append(module)
        self._computed = MadeOfParameters(roots, self.version)
        self._of_parameters: list[tuple[Call, frozenset[str]]] = []  # layers' calls that no input enters, and of what
        self._name_of: dict[tuple[Weight, str], str] = {}
        self.activated = WeakTensorKeyDictionary()  # what comes of activations: the records of their calls
        self._last: LinearCall | None = None  # that the torch call at hand is
        self._calls: dict[int, tuple[LinearCall, Call]] = {}  # by id; the call is kept, so that its id stays its own

    # Which layer a call belongs to.

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        running = self.running[-1] if self.running else None
        weight, elsewhere = self._weight_of(func, call, running)
        if weight is None:
            return None
        name = self._name_of.get((weight, call.kind)) or self._name(weight, call)
        why, layer = packed(call), self.layers.get(name)
        if layer is None:
            kernel = call.weight.shape[2:].numel()
            kept = weight.parameter, weight.transposed, weight.part, weight.made
            kind = call.kind
            if why or weight.parameter == _COMPUTED:  # a kind that is not followed
                kind += " of packed tensors" if why else f" of a {_COMPUTED}"
            layer = Layer(weight.module, kind, call.terms, kernel, call.weight.shape[0], *kept)
            self.layers[name] = layer
        if why:
            if call.input.is_nested or call.given.is_nested:  # rows of many lengths
                raise SettingError(f"{name}: {why}")
            layer.why = why
            return None
        origin = self.origins.get(call.input, UNKNOWN)
        record = Call(call, not origin.learned, origin.spatial, elsewhere=elsewhere)
        if (before := self.chains.get(call.input)) is not None:
            record.behind = self._record(before)
        self._last = call
        if (whose := self.activated.get(call.input)) is not None:
            whose.readers.append(None if call.transposed_conv else (name, call.column_flops))
        self._see(layer, record)
        return name

    def _see(self, layer: Layer, record: Call) -> None:
        record.read.append((record.call.input, self.version(record.call.input)))
        layer.calls.append(record)
        self._calls[id(record.call)] = (record.call, record)

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        of = self.layers[chain.name]
        if of.rows is not None:
            return None
        name = f"{chain.name}[{start}:{end}]"
        if name not in self.layers:
            self.layers[name] = replace(of, outputs=end - start, calls=[], rows=(start, end), whole=chain.name)
        own, record = chain.part(name, start, end), self._record(chain)
        self._see(self.layers[name], Call(own.call, record.raw, record.spatial, elsewhere=record.elsewhere))
        return own

    def activation(self, module: nn.Module) -> Activation | None:
        return activation_module(module)

    def compute(
        self, name: str, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]
    ) -> tuple[Tensor, LinearCall]:
        out, record = run(), self._calls[id(call)][1]
        record.elsewhere = record.elsewhere or unlike_its_terms(call, bias, out)
        return out, call

    def _weight_of(
        self, func: Callable, call: LinearCall, running: nn.Module | None
    ) -> tuple[Weight | None, str | None]:
        """Whose weight a call uses, and why that is of no use; None of a call that is no layer's."""
        if running is not None and (own := stored_in(running, call)) is not None:
            return own, None
        for home in self._homes.get(memory_of(call.given) or 0, ()):
            if (kept := stored_in(home, call)) is not None:
                outside = f"its weight is used by {self._called(running)}, outside of its own forward"
                return kept, outside if can_run(home) else None
        if running is None:
            return None, None
        if (made := self._computed.made(call)) is not None:
            if self._computed.constant(call.input):  # what computes a weight is no layer
                return None, None
            for record, roots in self._of_parameters:
                if roots <= {name for name, _, _ in made.roots}:
                    record.elsewhere = "what it computes is a weight"
            return Weight(running, name_of_made(made, self.names, running)[1], made=made), None
        if not called_with_any_weight(func):
            return None, None
        known = call.given in self.origins and self.origins[call.given].data
        why = "depends on the input" if known else "is no parameter, and not seen to be computed from parameters alone"
        return Weight(running, _COMPUTED), f"its weight {why}"

    def _name(self, weight: Weight, call: LinearCall) -> str:
        """What a layer is called: as its parameter is, or as the module whose ``weight`` that is."""
        module, parameter = self.names.get(weight.module, ""), weight.parameter
        if weight.made is not None:
            name = name_of_made(weight.made, self.names, weight.module)[0]
        elif parameter == _COMPUTED:
            name = module or parameter
        else:
            stored = stored_now(weight.module, parameter)
            if weight.part is not None and stored is not None:
                parameter = part_name(parameter, stored, weight.part)
            own = module if parameter == "weight" else f"{module}.{parameter}" if module else parameter
            name = own or parameter
        both_ways = weight.made is None and weight.part is None
        if name in self.layers and both_ways and self.layers[name].transposed != weight.transposed:
            name += ".T"
        known, more = name, 1
        while name in self.layers:
            more += 1
            name = f"{known} ({more})"
        self._name_of[weight, call.kind] = name
        return name

    def _called(self, module: nn.Module | None) -> str:
        return (self.names.get(module) or type(module).__name__) if module is not None else "the model"

    # What happens to its pre-activation.

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            inputs = list(tensors((args, kwargs)))
            before = [(tensor, self.version(tensor)) for tensor in inputs]
            origins = [self.origins.get(tensor, UNKNOWN) for tensor in inputs]
            read = [(tensor, record) for tensor in inputs if (record := self.activated.get(tensor)) is not None]
            known = self._computed.known(args, kwargs)
        seen, self._last = len(self._calls), None
        out = super().__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunction():
            if len(self._calls) == seen:
                self._note_product(func, inputs)
            self._computed.note(func, args, kwargs, out, known)
            if self._last is not None and isinstance(out, Tensor) and (roots := self._computed.roots(out)):
                self._of_parameters.append((self._calls[id(self._last)][1], roots))
            for tensor, record in read:
                self._note_reader(tensor, record, func, args, kwargs, out)
            for tensor in tensors(out):
                if not any(tensor is t and self.version(t) == version for t, version in before):
                    self.origins[tensor] = origin_of(func, inputs, origins, tensor, len(self._calls) > seen)
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
        elif (
            name in _OTHER_PRODUCTS and weights_among(running, inputs) and not all(map(self._computed.constant, inputs))
        ):
            self._unfollowed(running, name, f"computes {name}, which is not followed to an activation", inputs)

    def _note_reader(self, tensor: Tensor, record: Call, func: Callable, args: tuple, kwargs: dict, out: Any) -> None:
        """Who reads what comes of an activation, as far as an exact 0 in it stays one."""
        if describes(func) or (self._last is not None and self._last.input is tensor):
            return
        if out is tensor and not changes(func, kwargs):  # the same object: contiguous, dropout, ...
            return
        same_width = isinstance(out, Tensor) and out.shape[-1:] == tensor.shape[-1:]
        if not same_width or not keeps_zeros(func, args, kwargs, tensor):
            record.readers.append(None)
            return
        self.activated[out] = record
        other = next((x for x in tensors((args, kwargs)) if x is not tensor), None)
        if func in SCALES and other is not None and other.shape == tensor.shape and other in self.chains:
            chain = self.chains[other]
            record.factor = chain.name, self._record(chain)

    def _unfollowed(self, module: nn.Module, kind: str, why: str, inputs: list[Tensor], hidden: bool = False) -> None:
        name = self._called(module)
        if name not in self.layers:
            weights = weights_among(module, inputs)
            terms = weights[0].shape[1] if weights else inputs[0].shape[-1] if inputs and inputs[0].dim() else 1
            self.layers[name] = Layer(module, kind, terms, 1, why=why)
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

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        record = self._record(chain)
        if any(self.version(tensor) != version for tensor, version in record.read):
            record.why = record.why or "its input or residual is changed in place before the activation"
        record.closed, record.activation = True, chain.activation
        self.activated[out] = record
        record.residual = chain.residual is not None
        record.read.clear()

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        depths = [self.origins.get(x, UNKNOWN).depth for x in (left, right)]
        own, other = (right, left) if depths[1] > depths[0] else (left, right)
        goes_on = self.chains[own]
        shortcut = self.chains[other]
        add(self._record(shortcut), shortcut.name, self._record(goes_on), goes_on.name)
        return own

    def constant(self, tensor: Tensor) -> bool:
        return not self.origins.get(tensor, UNKNOWN).data

    def carry(self, chain: Chain, out: Tensor, further: Chain) -> None:
        super().carry(chain, out, further)
        if further.residual is not None and further.residual is not chain.residual:
            self._record(chain).read.append((further.residual, self.version(further.residual)))

    def in_another_thread(self, module: nn.Module) -> None:
        name = self._called(module)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in self.layers:
            why = "runs in another thread, where its calls cannot be seen"
            self.layers[name] = Layer(module, *kind_and_terms(module), why=why)

    def _record(self, chain: Chain) -> Call:
        return self._calls[id(chain.call)][1]

    # What comes of it.

    def sites(self) -> list[Site]:
        """Every layer that was seen, in the order of their first calls; then those that were not."""
        listed = {layer.module for layer in self.layers.values()}
        whole = {(root, own): name for name, of in self.layers.items() if of.made for _, root, own in of.made.roots}
        for module, name in self.names.items():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module not in listed:
                why = "not seen as a torch call: unused in this pass, fused or scripted"
                if (of := whole.get((module, "weight"))) is not None:
                    why = f"its weight is used to compute that of {of}"
                self.layers[name] = Layer(module, *kind_and_terms(module), why=why)
        # What is split is told apart where a part of it is before an activation, as a gate is.
        split = {layer.whole for layer in self.layers.values() if any(call.closed for call in layer.calls)} - {None}
        for layer in self.layers.values():
            if layer.whole is not None and layer.why is None:
                layer.why = read_beside_its_parts(self.layers[layer.whole])
        return [
            site_of(name, layer) for name, layer in self.layers.items() if layer.whole is None or layer.whole in split
        ]
