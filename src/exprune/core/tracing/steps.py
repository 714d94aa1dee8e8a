"""The effect of each torch call on the chains of its tensors.

A step runs the call and continues the chains. It returns None, without running the call, if it does not apply.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls import effects
from exprune.core.calls.activations import ACTIVATION_CALLS, activation_of
from exprune.core.calls.layers import LAYER_CALLS, layer_call, named, per_channel
from exprune.core.tracing.chain import Chain

if TYPE_CHECKING:
    from exprune.core.tracing.tracer import Tracer


def step_of(func: Callable) -> Callable | None:
    """The step of a call; None if no chain continues through it."""
    return _STEPS.get(func) or (_activation if func in ACTIVATION_CALLS else None)


def other(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    """Run a call that no chain continues through."""
    tagged = [
        (x, chain, tracer.guide.version(x))
        for x in effects.tensors((args, kwargs))
        if (chain := tracer.chains.get(x)) is not None and not effects.describes(func)
    ]
    out = tracer.run(func, args, kwargs)
    for x, chain, version in tagged:
        changed = effects.changes(func, kwargs) or tracer.guide.version(x) != version
        if changed:
            tracer.chains.pop(x, None)
        same = any(x is result for result in effects.tensors(out))  # the same object: contiguous, dropout, ...
        if changed or not same:
            tracer.tell.escapes(chain, effects.call_name(func))
    return out


def _layer(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    call = layer_call(func, args, kwargs)
    if call is None or (name := tracer.guide.layer(func, call)) is None:
        return None
    read = [chain for x in effects.tensors((args, kwargs)) if (chain := tracer.chains.get(x)) is not None]
    out, call = tracer.compute(name, call, lambda: tracer.run(func, args, kwargs))
    for chain in read:
        tracer.tell.escapes(chain, effects.call_name(func))
    tracer.tell.computed(name, call, out)
    if tracer.guide.follows(name):
        shift = None if call.bias is None else per_channel(call.bias, call.spatial_dims)
        tracer.starts(Chain(name, call, shift=shift), out)
    return out


def _batch_norm(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = named(names, args, kwargs)
    mean, variance = given["running_mean"], given["running_var"]
    of_batch = given.get("training", False) or mean is None
    if of_batch:
        tracer.guide.at_batch_statistics(training_mode=mean is not None)
    chain, z = tracer.chains.get(given["input"]), given["input"]
    # BatchNorm's channels are dimension 1. For a Linear's output, these are its channels only if it is a matrix.
    if chain is None or of_batch or z.dim() != chain.call.spatial_dims + 2:
        return None
    out = tracer.run(func, args, kwargs)
    scale = (variance + given.get("eps", 1e-5)).rsqrt()
    if given.get("weight") is not None:
        scale = scale * given["weight"]
    shift = -mean * scale
    if given.get("bias") is not None:
        shift = shift + given["bias"]
    dims = chain.call.spatial_dims
    tracer.goes_on(chain, out, chain.affine(per_channel(scale, dims), per_channel(shift, dims)))
    return out


def _add(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    left, right = effects.operands(args, kwargs)
    candidates = [x for x in (left, right) if isinstance(x, Tensor) and x in tracer.chains]
    if not candidates or left is right or kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
        return None
    own = tracer.guide.deeper(left, right) if len(candidates) == 2 else candidates[0]
    other = right if own is left else left
    chain, shape = tracer.chains[own], own.shape
    if isinstance(other, Tensor) and torch.broadcast_shapes(shape, other.shape) != shape:
        return None
    if func in effects.IN_PLACE_ADDS and own is not left:
        other = left.clone()  # because left will be overwritten by the sum
    beside = _one_per_channel(tracer, chain, own, other)
    if beside is None and not isinstance(other, Tensor):  # a bool, a complex number, or a number of numpy
        return None
    out = tracer.run(func, args, kwargs)
    tracer.goes_on(chain, out, chain.plus(other) if beside is None else chain.shifted(beside))
    return out


def _sub(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    left, right = effects.operands(args, kwargs)
    chain = tracer.chains.get(left) if isinstance(left, Tensor) else None
    if chain is None or kwargs.get("alpha", 1) != 1 or kwargs.get("out") is not None:
        return None
    beside = _one_per_channel(tracer, chain, left, right)
    if beside is None:
        return None
    out = tracer.run(func, args, kwargs)
    tracer.goes_on(chain, out, chain.shifted(-beside))
    return out


def _scale(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    left, right = effects.operands(args, kwargs)
    if func not in effects.DIVISIONS and isinstance(right, Tensor) and right in tracer.chains:
        left, right = right, left
    chain = tracer.chains.get(left) if isinstance(left, Tensor) else None
    if chain is None or {"out", "rounding_mode"} & kwargs.keys():
        return None
    factor = _one_per_channel(tracer, chain, left, right)
    if factor is None:
        return None
    factor = torch.as_tensor(factor, dtype=left.dtype, device=left.device)
    factor = per_channel(1 / factor if func in effects.DIVISIONS else factor, chain.call.spatial_dims)
    out = tracer.run(func, args, kwargs)
    tracer.goes_on(chain, out, chain.scaled(factor))
    return out


def _view(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    z = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if not isinstance(z, Tensor) or (chain := tracer.chains.get(z)) is None or chain.call.is_conv or not z.dim():
        return None
    out = tracer.run(func, args, kwargs)
    if out is z:
        return out
    if out.dim() and out.dtype == z.dtype and out.shape[-1] == z.shape[-1]:
        tracer.goes_on(chain, out, chain.viewed(z.shape, out.shape))
    else:
        tracer.tell.escapes(chain, effects.call_name(func))
    return out


def _parts(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    """Split a Linear's channels, for example into a gate and its factor that are computed by one matrix."""
    z = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if not isinstance(z, Tensor) or (chain := tracer.chains.get(z)) is None or chain.call.is_conv:
        return None
    given = named(("input", "sizes", "dim"), args, kwargs)
    if given.get("dim", 0) not in (-1, z.dim() - 1):
        return None
    out = tracer.run(func, args, kwargs)
    tracer.tell.escapes(chain, effects.call_name(func))
    start = 0
    for part in out:
        end = start + part.shape[-1]
        if (own := tracer.guide.part(chain, start, end)) is not None:
            tracer.starts(own, part)
        start = end
    return out


def _activation(tracer: "Tracer", func: Callable, args: tuple, kwargs: dict) -> Any:
    z = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if not isinstance(z, Tensor) or (chain := tracer.chains.get(z)) is None:
        return None
    activation = activation_of(func, args, kwargs)
    if activation is None:
        return None
    chain = replace(chain, activation=activation)
    tracer.tell.before_activation(chain, z)
    out = tracer.run(func, args, kwargs)
    tracer.closes(chain, out)
    return out


def _one_per_channel(tracer: "Tracer", chain: Chain, z: Tensor, other: Any) -> Tensor | float | None:
    """``other`` if it is one number, or one per channel of ``z``, and the same for every input; otherwise None."""
    if isinstance(other, bool) or not isinstance(other, Tensor | int | float):
        return None
    if not isinstance(other, Tensor):
        return other
    dim = chain.call.channel_dim
    # Compare shapes by the dimensions of z: with fewer dimensions it is not one number per channel.
    of_channels = -dim <= other.dim() <= z.dim() and other.shape[dim] == other.numel() == z.shape[dim]
    if not (of_channels or other.numel() == 1) or not tracer.guide.constant(other):
        return None
    return per_channel(other, chain.call.spatial_dims)


_STEPS: dict[Callable, Callable] = {
    **dict.fromkeys(LAYER_CALLS, _layer),
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    **dict.fromkeys(effects.ADDS, _add),
    **dict.fromkeys(effects.SUBTRACTIONS, _sub),
    **dict.fromkeys(effects.SCALES, _scale),
    **dict.fromkeys(effects.VIEWS, _view),
    **dict.fromkeys(effects.PARTS, _parts),
}
