"""Layers computed in parts: their outputs are accumulated from the partial sums that the tests need."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.calls.layers import LinearCall, per_channel
from exprune.core.partial_sums.buffers import Buffers
from exprune.core.partial_sums.terms import Terms

# Outputs summed at a time. On a CPU, each core's share is small enough that an addition finds its operands in the
# cache.
_BLOCK = 2**19
_ELSEWHERE = 2**26


class Parts:
    """Compute layers, some of them in parts. Accumulating partial sums costs less than computing both sums and output.

    Args:
        plans: The stages of the layers in parts, by name.
    """

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self._plans = plans
        self._buffers = Buffers()

    def compute(self, name: str, call: LinearCall, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        """The output of a layer's call, computed by ``run`` or in parts, and the call with its partial sums if any."""
        plan = self._plans.get(name)
        if plan is None or plan.rest is None:
            return run(), call
        precise = call.input.dtype == call.weight.dtype and call.weight.dtype in (torch.float32, torch.float64)
        precise = precise and not torch.is_autocast_enabled(call.input.device.type)
        if not precise:
            return run(), call
        groups = [Terms.of(call, channels) for channels in (*(stage.channels for stage in plan.stages), plan.rest)]
        return _in_parts(call, groups, self._buffers)


def some_rows(out: Tensor, each_core: int, most: int | None = None) -> Iterator[slice]:
    """Yield slices of the rows of a layer's output (inputs of a batch), with ``each_core`` outputs per core on a CPU.

    ``most`` limits the number of rows per slice.
    """
    outputs = each_core * torch.get_num_threads() if out.device.type == "cpu" else _ELSEWHERE
    step = max(1, outputs * len(out) // max(out.numel(), 1))
    step = step if most is None else min(step, most)
    for start in range(0, len(out), step):
        yield slice(start, start + step)


def _in_parts(call: LinearCall, groups: Sequence[Terms], buffers: Buffers) -> tuple[Tensor, LinearCall]:
    """A layer's output, summed over groups that together contain all terms, and the call with its partial sums."""
    x, bias = call.input, None if call.bias is None else per_channel(call.bias, call.spatial_dims)
    if torch.is_grad_enabled() or x.dim() == -call.channel_dim:  # no batch
        *sums, out = itertools.accumulate((group.sum(group.inputs(x)) for group in groups), torch.add)
        return out if bias is None else out + bias, replace(call, sums=tuple(sums))
    one = groups[0].sum(groups[0].inputs(x[:1]))
    out = torch.empty_like(one.expand(len(x), *one.shape[1:]), memory_format=_memory_format(one))
    sums = [buffers.empty_like(out) for _ in groups[1:]]
    for rows in some_rows(out, _BLOCK):
        so_far = None
        for group, total in zip(groups, [*sums, out], strict=True):
            so_far = group.sum(group.inputs(x[rows]), so_far, total[rows])
        if bias is not None:
            out[rows] += bias
    return out, replace(call, sums=tuple(sums))


def _memory_format(x: Tensor) -> torch.memory_format:
    for last, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == dims and x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format
