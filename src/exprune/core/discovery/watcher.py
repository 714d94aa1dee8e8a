"""Watch a forward pass: every layer's calls, the operations their outputs go through, and their readers."""

import gc
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from exprune.core.calls.activations import Activation, activation_module
from exprune.core.calls.effects import SCALES, changes, describes, keeps_zeros, tensors
from exprune.core.calls.kinds import packed
from exprune.core.calls.layers import LinearCall
from exprune.core.discovery.layer import Layer
from exprune.core.discovery.naming import COMPUTED, Naming
from exprune.core.discovery.origins import CONSTANT, UNKNOWN, origin_of
from exprune.core.discovery.products import product_with_weights
from exprune.core.discovery.records import Call, Seen, add, read_beside_its_parts, site_of, unseen
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.partial_sums.trial import unlike_its_terms
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Guide


class Watcher(Guide):
    """Record for every layer call the operations that its pre-activation goes through, and everything that reads it.

    Args:
        model: The model.
        version: Returns a number that changes when a tensor's memory is written to.
    """

    def __init__(self, model: nn.Module, version: Callable[[Tensor], int]) -> None:
        self.modules = list(model.modules())
        self._version = version
        self._naming = Naming(model, version)
        self._layers: dict[str, Seen] = {}
        self._origins = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self._origins[tensor] = CONSTANT
        self._of_parameters: list[tuple[Call, frozenset[str]]] = []  # calls without data, and the parameters they use
        self._activated = WeakTensorKeyDictionary()  # outputs of activations: the records of their calls
        self._last: LinearCall | None = None  # the layer call that the present torch call is
        self._calls: dict[int, tuple[LinearCall, Call]] = {}  # by id; storing the call keeps its id unique

    def enter(self, chains: MutableMapping[Tensor, Chain], running: Sequence[nn.Module]) -> list[Any]:
        self._chains, self._running = chains, running
        return []

    # Which layer a call belongs to.

    def layer(self, func: Callable, call: LinearCall) -> str | None:
        weight, elsewhere = self._naming.weight_of(func, call, self._innermost, self._of_data)
        if weight is None:
            return None
        if weight.made is not None:
            made_of = {name for name, _, _ in weight.made.roots}
            for record, roots in self._of_parameters:
                if roots <= made_of:
                    record.elsewhere = "what it computes is a weight"
        name = self._naming.name(weight, call.kind, self._layers)
        why, origin = packed(call), self._origins.get(call.input, UNKNOWN)
        if (seen := self._layers.get(name)) is None:
            kind = call.kind
            if why or weight.parameter == COMPUTED:  # a kind that cannot be followed
                kind += " of packed tensors" if why else f" of a {COMPUTED}"
            sizes = call.terms, call.weight.shape[2:].numel()
            seen = Seen(Layer(name, kind, *sizes, weight, call.weight.shape[0], origin.spatial))
            self._layers[name] = seen
        if why:
            if call.input.is_nested or call.given.is_nested:  # rows of different lengths
                raise SettingError(f"{name}: {why}")
            seen.why = why
            return None
        record = Call(call, not origin.learned, elsewhere=elsewhere)
        if (before := self._chains.get(call.input)) is not None:
            record.behind = self._record(before)
        self._last = call
        if (whose := self._activated.get(call.input)) is not None:
            whose.readers.append(None if call.transposed_conv else (name, call.column_flops))
        self._see(seen, record)
        return name

    @property
    def _innermost(self) -> nn.Module | None:
        return self._running[-1] if self._running else None

    def _of_data(self, tensor: Tensor) -> bool:
        return tensor in self._origins and bool(self._origins[tensor].data)

    def _see(self, seen: Seen, record: Call) -> None:
        record.read.append((record.call.input, self._version(record.call.input)))
        seen.calls.append(record)
        self._calls[id(record.call)] = (record.call, record)

    def part(self, chain: Chain, start: int, end: int) -> Chain | None:
        of = self._layers[chain.name]
        if of.layer.rows is not None:
            return None
        name = f"{chain.name}[{start}:{end}]"
        if name not in self._layers:
            layer = replace(of.layer, name=name, outputs=end - start, rows=(start, end), whole=chain.name)
            self._layers[name] = Seen(layer, why=of.why)
        own, record = chain.part(name, start, end), self._record(chain)
        self._see(self._layers[name], Call(own.call, record.raw, elsewhere=record.elsewhere))
        return own

    def activation(self, module: nn.Module) -> Activation | None:
        return activation_module(module)

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        record = self._calls[id(call)][1]
        record.elsewhere = record.elsewhere or unlike_its_terms(call, out)

    # What happens to its pre-activation.

    def around(self, func: Callable, args: tuple, kwargs: dict, run: Callable[[Callable, tuple, dict], Any]) -> Any:
        computed = self._naming.computed
        with torch._C.DisableTorchFunction():
            inputs = list(tensors((args, kwargs)))
            before = [(tensor, self.version(tensor)) for tensor in inputs]
            origins = [self._origins.get(tensor, UNKNOWN) for tensor in inputs]
            read = [(tensor, record) for tensor in inputs if (record := self._activated.get(tensor)) is not None]
            known = computed.known(args, kwargs)
        seen, self._last = len(self._calls), None
        out = run(func, args, kwargs)
        with torch._C.DisableTorchFunction():
            if len(self._calls) == seen:
                self._note_product(func, inputs)
            computed.note(func, args, kwargs, out, known)
            if self._last is not None and isinstance(out, Tensor) and (roots := computed.roots(out)):
                self._of_parameters.append((self._calls[id(self._last)][1], roots))
            for tensor, record in read:
                self._note_reader(tensor, record, func, args, kwargs, out)
            for tensor in tensors(out):
                if not any(tensor is t and self.version(t) == version for t, version in before):
                    self._origins[tensor] = origin_of(func, inputs, origins, tensor, len(self._calls) > seen)
        return out

    def _note_product(self, func: Callable, inputs: list[Tensor]) -> None:
        """Record the running module if it multiplies by weights in a call that is not followed."""
        if (running := self._innermost) is None:
            return
        name, varies = self._naming.of_module(running), not all(map(self._naming.computed.constant, inputs))
        if (product := product_with_weights(func, inputs, name, running, varies)) is not None:
            seen = self._layers.setdefault(name, product)
            seen.layer = replace(seen.layer, hidden=seen.layer.hidden or product.layer.hidden)

    def _note_reader(self, tensor: Tensor, record: Call, func: Callable, args: tuple, kwargs: dict, out: Any) -> None:
        """Record what reads the output of an activation, as long as an exact 0 in it stays 0."""
        if describes(func) or (self._last is not None and self._last.input is tensor):
            return
        if out is tensor and not changes(func, kwargs):  # the same object: contiguous, dropout, ...
            return
        same_width = isinstance(out, Tensor) and out.shape[-1:] == tensor.shape[-1:]
        if not same_width or not keeps_zeros(func, args, kwargs, tensor):
            record.readers.append(None)
            return
        self._activated[out] = record
        other = next((x for x in tensors((args, kwargs)) if x is not tensor), None)
        if func in SCALES and other is not None and other.shape == tensor.shape and other in self._chains:
            chain = self._chains[other]
            record.factor = chain.name, self._record(chain)

    def version(self, tensor: Tensor) -> int:
        return self._version(tensor)

    def goes_on(self, chain: Chain, further: Chain) -> None:
        record = self._record(chain)
        record.uses[chain.stage].append("")
        if further.residual is not None and further.residual is not chain.residual:
            record.read.append((further.residual, self.version(further.residual)))

    def escapes(self, chain: Chain, reader: str) -> None:
        self._record(chain).uses[chain.stage].append(reader)

    def use(self, structure: Any, what: str) -> None:
        """Record that ``what`` reads every pre-activation in ``structure``."""
        for tensor in tensors(structure):
            if (chain := self._chains.get(tensor)) is not None:
                self._record(chain).uses[chain.stage].append(what)

    def use_what_is_kept(self) -> None:
        """Record every pre-activation that still exists as read, because whatever stores it may use it."""
        for layer in self._layers.values():
            for record in layer.calls:
                record.read.clear()  # our own references
        if any(self._record(chain).closed for chain in list(self._chains.values())):
            gc.collect()  # tensors in reference cycles are not stored anywhere
        for tensor in list(self._chains.keys()):
            self.use(tensor, "whatever keeps it after the forward pass")

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        record = self._record(chain)
        record.uses[chain.stage].append("")
        if any(self.version(tensor) != version for tensor, version in record.read):
            record.why = record.why or "its input or residual is changed in place before the activation"
        record.closed, record.activation = True, chain.activation
        self._activated[out] = record
        record.residual = chain.residual is not None
        record.read.clear()

    def deeper(self, left: Tensor, right: Tensor) -> Tensor:
        depths = [self._origins.get(x, UNKNOWN).depth for x in (left, right)]
        own, other = (right, left) if depths[1] > depths[0] else (left, right)
        goes_on = self._chains[own]
        shortcut = self._chains[other]
        add(self._record(shortcut), shortcut.name, self._record(goes_on), goes_on.name)
        return own

    def constant(self, tensor: Tensor) -> bool:
        return not self._origins.get(tensor, UNKNOWN).data

    def in_another_thread(self, module: nn.Module) -> None:
        name = self._naming.of_module(module)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name not in self._layers:
            why = "runs in another thread, where its calls cannot be seen"
            self._layers[name] = unseen(name, module, why)

    def _record(self, chain: Chain) -> Call:
        return self._calls[id(chain.call)][1]

    # The results.

    def sites(self) -> list[Site]:
        """All layers: those seen, in the order of their first calls, then those not seen."""
        layers = [seen.layer for seen in self._layers.values()]
        listed = {layer.stored.module for layer in layers}
        whole = {(root, own): of.name for of in layers if (made := of.stored.made) for _, root, own in made.roots}
        for module, name in self._naming.modules.items():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module not in listed:
                why = "not seen as a torch call: unused in this pass, fused or scripted"
                if (of := whole.get((module, "weight"))) is not None:
                    why = f"its weight is used to compute that of {of}"
                self._layers[name] = unseen(name, module, why)
        # Parts of a split layer are listed if one of them leads to an activation, as a gate does.
        layers_seen = self._layers.values()
        split = {seen.layer.whole for seen in layers_seen if any(call.closed for call in seen.calls)} - {None}
        for seen in layers_seen:
            if seen.layer.whole is not None and seen.why is None:
                seen.why = read_beside_its_parts(self._layers[seen.layer.whole])
        return [site_of(seen) for seen in layers_seen if seen.layer.whole is None or seen.layer.whole in split]
