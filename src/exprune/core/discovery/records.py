"""Records of each layer's calls, and the verdict: a site, or the reason why it cannot be pruned."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from exprune.core.calls.activations import Activation
from exprune.core.calls.kinds import transformed
from exprune.core.calls.layers import LinearCall
from exprune.core.calls.weights import Weight
from exprune.core.discovery.layer import Layer
from exprune.core.discovery.sites import PREDICTION, ZERO, Feeds, Site, Worth


@dataclass
class Call:
    """What happened to the pre-activation of one call: its uses at every stage of its chain."""

    call: LinearCall
    raw: bool = False
    uses: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    read: list[tuple[Tensor, int]] = field(default_factory=list)  # tensors that the test will read, and their versions
    closed: bool = False
    residual: bool = False
    why: str | None = None  # why it cannot be pruned, if the uses alone do not show it
    elsewhere: str | None = None  # why its weight cannot be determined
    added_to: "tuple[str, Call] | None" = None
    behind: "Call | None" = None  # the call whose unchanged output is the input
    adapter: str | None = None  # why it is, or has, an adapter that could be merged
    activation: Activation | None = None
    readers: list[tuple[str, int] | None] = field(default_factory=list)  # readers of the activation; None: not a layer
    factor: "tuple[str, Call] | None" = None  # what the activation's output is multiplied by

    @property
    def unfit(self) -> str | None:
        """The reason why its terms are unknown, whatever happens to its output."""
        return self.call.unsupported or transformed(self.call.input) or self.elsewhere


@dataclass
class Seen:
    """A layer, and all its calls that were seen."""

    layer: Layer
    calls: list[Call] = field(default_factory=list)
    why: str | None = None  # why none of its calls can be followed


def unseen(name: str, module: nn.Linear | _ConvNd, why: str) -> Seen:
    """The record of one of torch's own layers without any call seen."""
    weight, stored = module.weight, Weight(module, "weight")
    if isinstance(module, nn.Linear):
        return Seen(Layer(name, "linear", weight.shape[1], 1, stored), why=why)
    transposed = isinstance(module, _ConvTransposeNd)
    kind = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    return Seen(Layer(name, kind, weight.shape[0 if transposed else 1], weight.shape[2:].numel(), stored), why=why)


def add(shortcut: Call, name: str, goes_on: Call, name_of_that: str) -> None:
    """Record that one call's output is added to another's, whose chain continues.

    The other may be a low-rank adapter: two layers in a row, next to a layer with the same input.
    """
    shortcut.added_to = name_of_that, goes_on
    inner, outer, own = goes_on.behind, goes_on.call, shortcut.call
    if inner is None or inner.call.input is not own.input or outer.terms >= own.terms:
        return
    if inner.call.weight.shape[2:] == own.weight.shape[2:] and outer.weight.shape[2:].numel() == 1:
        merge = "merge it (merge_and_unload() of PEFT) and find the sites again"
        shortcut.adapter = f"{name_of_that} is a low-rank adapter of it; {merge}"
        goes_on.adapter = f"a low-rank adapter of {name}; {merge}"


def site_of(seen: Seen) -> Site:
    calls = seen.calls
    reasons = [_reason(call) for call in calls]
    failed = [reason for reason in reasons if reason is not None]
    reason = seen.why or (failed[0] if failed else None)
    if reason is None and not all(_same_end(call, calls[0]) for call in calls):
        reason = "its calls feed different activations"
    if seen.why is None and failed and len(failed) < len(reasons):
        reason = f"only some of its {len(reasons)} calls can be pruned: {reason}"
    first = calls[0] if calls else None
    activation = first.activation if first is not None and all(_same_end(call, first) for call in calls) else None
    gated, reader = _factor(calls), _reader(calls)
    spared = {} if reader is None else dict([reader])
    if gated is not None:
        spared[gated[0]] = 2 * gated[1].call.weight[0].numel()
    outcomes: tuple[str, ...] = ()
    if seen.why is None and calls and not any(call.unfit for call in calls):
        tested = all(_reason(replace(call, raw=False)) is None for call in calls) and activation is not None
        outcomes = (ZERO, PREDICTION) if tested else (PREDICTION,)
    ends = {end.module: end for call in calls if (end := call.activation) and end.module is not None}
    feeds = Feeds(activation, any(call.residual for call in calls), tuple(ends.items()))
    worth = Worth(gated[0] if gated else None, reader[0] if reader else None, spared)
    return Site(seen.layer, feeds, worth, reason, outcomes)


def read_beside_its_parts(whole: Seen) -> str | None:
    """The reason why the parts of a layer cannot be pruned, if all its outputs are read together; otherwise None."""
    for call in whole.calls:
        named = {use for uses in call.uses.values() for use in uses} - {"", "chunk", "split", "tensor_split"}
        if named or sum(map(len, call.uses.values())) > max(call.uses, default=0) + 1:
            return f"its pre-activation is also read by {', '.join(sorted(named)) or 'another operation'}"
    return None


def _same_end(call: Call, first: Call) -> bool:
    if not (call.closed and call.activation and first.activation):
        return False
    return (call.activation.relu and first.activation.relu) or call.activation.tried == first.activation.tried


def _factor(calls: Sequence[Call]) -> tuple[str, Call] | None:
    """What the outputs of all calls' activations are multiplied by, if that is used for nothing else."""
    factors = [call.factor for call in calls]
    names = {factor[0] for factor in factors if factor is not None}
    if len(names) != 1 or None in factors:
        return None
    alone = all(sum(map(len, factor[1].uses.values())) == 1 for factor in factors if factor is not None)
    return factors[0] if alone else None


def _reader(calls: Sequence[Call]) -> tuple[str, int] | None:
    """The only layer that reads the activations of all calls, and the FLOPs in it that one zero saves."""
    readers = {reader for call in calls for reader in call.readers}
    return readers.pop() if len(readers) == 1 and all(len(call.readers) == 1 for call in calls) else None


def _closes(call: Call) -> bool:
    """Whether the chain that continues where this call is added (directly or through others) reaches an activation."""
    seen: list[Call] = []
    while call.added_to is not None and not any(call is other for other in seen):
        seen.append(call)
        call = call.added_to[1]
    return call.closed


def _feeds(name: str) -> str:
    if not name:
        return "feeds no activation"
    if name in _ELEMENTWISE:
        return f"feeds {name}, which is not known as an activation; register_activation(torch.{name}) makes it one"
    return f"feeds {name}, not an activation"


_ELEMENTWISE = {"tanh", "sigmoid", "sin", "exp", "abs", "erf"}  # functions of torch that may serve as activations


def _reason(call: Call) -> str | None:
    if call.adapter is not None:
        return call.adapter
    if call.added_to is not None:
        name = call.added_to[0]
        return (
            f"a shortcut, added to {name}" if _closes(call) else f"is added to {name}, and the sum feeds no activation"
        )
    if not call.closed:
        last = call.uses[max(call.uses)] if call.uses else [""]
        if last[0] == "batch_norm":
            return "its BatchNorm uses the statistics of the batch, or normalises something other than its channels"
        return transformed(call.call.input) or call.elsewhere or call.why or _feeds(last[0])
    for uses in call.uses.values():
        if len(uses) > 1:
            others = sorted({use for use in uses if use}) or ["another operation"]
            return f"its pre-activation is also read by {', '.join(others)}"
    if call.unfit or call.why:
        return call.unfit or call.why
    if call.raw:
        return f"reads the raw input ({call.call.terms} terms)"
    return None
