"""Partial sums of a neuron's terms, and of their squares, over a range of terms.

A term ``t_c`` is what input channel ``c`` contributes to an output: one product in a Linear layer, the dot
product of one kernel slice with one patch in a convolution (docs/method.md, section 1).
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.accounting.plan import Plan
from exprune.core.calls.layers import LinearCall, per_channel
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.site_follower import SiteFollower
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.sums.buffers import Buffers
from exprune.core.sums.elementwise import select_channels

# Outputs of a layer in parts that are summed at a time: on a CPU, by each core, few enough that an addition finds its
# summands in the cache, and that their memory is used again.
_BLOCK = 2**19
_ELSEWHERE = 2**26


# Told, of some rows of a layer's output, the sums after a stage, which the next stage overwrites; at last the output.
Watcher = Callable[[slice, int, Tensor], None]


@dataclass(frozen=True)
class Terms:
    """Terms ``channels`` of every neuron of a call, with weights (out, terms, *kernel) ready for any input rows."""

    call: LinearCall
    channels: slice | Tensor
    weight: Tensor

    @classmethod
    def of(
        cls, call: LinearCall, channels: slice | Tensor, keep: Tensor | None = None, scale: Tensor | None = None
    ) -> "Terms":
        """The terms of some input channels, times ``scale`` (one factor per output channel).

        ``keep`` (outputs, channels) says which of them an output channel has; None: all.
        """
        if isinstance(channels, Tensor):
            channels = channels.to(call.weight.device)
            weight = select_channels(call.weight, channels, 1).to(_dtype(call))
        else:
            weight = call.weight[:, channels].to(_dtype(call))
        beside = (1,) * (weight.dim() - 2)
        if keep is not None:
            weight = weight * keep.to(weight.device).view(*keep.shape, *beside)
        if scale is not None:
            weight = weight * scale.reshape(-1, 1, *beside)
        return cls(call, channels, weight)

    def inputs(self, x: Tensor) -> Tensor:
        """What the terms are made of, from rows of the call's input: their channels, in the type of the weights."""
        dim = self.call.channel_dim
        if isinstance(self.channels, slice):
            x = x.narrow(dim, self.channels.start, self.channels.stop - self.channels.start)
        else:
            x = select_channels(x, self.channels, dim)
        return x.to(self.weight.dtype)

    def sum(self, x: Tensor, before: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The sum of the terms made of ``x``, see :meth:`inputs`, in the shape of the rows' output.

        ``before``, if given, is added; the sum is written to ``out``, if given, which may be ``before``.
        """
        if not self.call.is_conv:
            if x.dim() == 2 and before is not None:
                return torch.addmm(before, x, self.weight.T, out=out)
            if x.dim() == 2 and out is not None:
                return torch.mm(x, self.weight.T, out=out)
            part = F.linear(x, self.weight)
        else:
            part = _convolve(x, self.weight, self.call)
        if before is not None:
            return torch.add(before, part, out=out)
        return part if out is None else out.copy_(part)

    def squares(self, x: Tensor) -> Tensor:
        """The sum of the terms' squares, likewise.

        Where a term is one product, ``(w x)^2 = w^2 x^2``: one matrix product. Else one channel's terms at a time,
        squared into the sum while they are in the cache (benchmarks/squares.py has the alternatives).
        """
        if not self.call.is_conv:
            return F.linear(x * x, self._squared)
        if self.weight[0, 0].numel() == 1:
            return _convolve(x * x, self._squared, self.call)
        patches, shape = self._patches(x)
        weights = self.weight.flatten(2).permute(1, 2, 0).contiguous()
        total = (patches[0].T @ weights[0]).square_()
        term = torch.empty_like(total)
        for patch, weight in zip(patches[1:], weights[1:], strict=True):
            torch.mm(patch.T, weight, out=term)
            total.addcmul_(term, term)
        return total.view(*shape, -1).movedim(-1, self.call.channel_dim)

    @cached_property
    def _squared(self) -> Tensor:
        return self.weight * self.weight

    def _patches(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """What each output of each channel sees, (channels, kernel, outputs), and the shape of one channel's outputs.

        ``x`` is (..., channels, *space).
        """
        dims = self.call.spatial_dims
        x = _pad(x.movedim(self.call.channel_dim, 0).contiguous(), self.call)
        for dim, (size, stride, apart) in enumerate(
            zip(self.weight.shape[2:], self.call.stride, self.call.dilation, strict=True)
        ):
            x = x.unfold(dim - dims if not dim else x.dim() - dims, apart * (size - 1) + 1, stride)[..., ::apart]
        kernel = range(-dims, 0)
        shape = x.shape[1:-dims]
        return x.movedim(tuple(kernel), tuple(range(1, dims + 1))).reshape(len(x), self.weight[0, 0].numel(), -1), shape


def _convolve(x: Tensor, weight: Tensor, call: LinearCall) -> Tensor:
    return _CONVOLUTIONS[call.spatial_dims](x, weight, None, call.stride, call.padding, call.dilation)


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class StagedFollower(SiteFollower):
    """Follows layers, some of which are evaluated in parts: an output made of its partial sums costs less than both.

    Args:
        sites, followed: as of :class:`SiteFollower`.
        in_parts: the stages of those in parts, by name.
    """

    def __init__(
        self, sites: Sequence[Site], in_parts: Mapping[str, Plan], followed: Collection[str] | None = None
    ) -> None:
        super().__init__(sites, followed)
        self._in_parts = in_parts
        self._buffers = Buffers()

    def compute(
        self, name: str, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]
    ) -> tuple[Tensor, LinearCall]:
        plan = self._in_parts.get(name)
        # What a context around this one counts is the model's own call.
        if plan is None or plan.rest is None or self.inside_another:
            return run(), call
        precise = call.input.dtype == call.weight.dtype and call.weight.dtype in (torch.float32, torch.float64)
        precise = precise and not torch.is_autocast_enabled(call.input.device.type)
        if not precise:
            return run(), call
        groups = [Terms.of(call, channels) for channels in (*(stage.channels for stage in plan.stages), plan.rest)]
        return _in_parts(call, bias, groups, self._buffers, self.watch(name, call, bias))

    def watch(self, name: str, call: LinearCall, bias: Tensor | None) -> Watcher | None:
        """What sees the sums of a layer as they are made; None: they are kept until its ReLU."""
        return None


def check_rows(rows: Tensor, chain: Chain, out: Tensor) -> None:
    """Raise a SettingError unless ``rows`` has one value for each of the leading dimensions of the chain's output."""
    leading = out.shape[: out.dim() + chain.call.channel_dim].numel()
    if rows.numel() != leading:
        raise SettingError(f"rows: {rows.numel()} values, but {chain.name} has {leading} rows in this batch")


def some_rows(out: Tensor, each_core: int) -> Iterator[slice]:
    """All rows (inputs of a batch) of a layer's output, some at a time: on a CPU so many outputs for each core."""
    outputs = each_core * torch.get_num_threads() if out.device.type == "cpu" else _ELSEWHERE
    step = max(1, outputs * len(out) // max(out.numel(), 1))
    for start in range(0, len(out), step):
        yield slice(start, start + step)


def _in_parts(
    call: LinearCall, bias: Tensor | None, groups: Sequence[Terms], buffers: Buffers, watcher: Watcher | None
) -> tuple[Tensor, LinearCall]:
    """A layer's output, summed over groups of terms that are all together, and the call with its sums.

    A watcher is shown the sums instead, while they are in the cache: then they take no memory of their own.
    """
    x = call.input
    if bias is not None:
        bias = per_channel(bias, call.spatial_dims)
    if torch.is_grad_enabled() or x.dim() == -call.channel_dim:  # no batch
        *sums, out = itertools.accumulate((group.sum(group.inputs(x)) for group in groups), torch.add)
        return out if bias is None else out + bias, replace(call, sums=tuple(sums))
    one = groups[0].sum(groups[0].inputs(x[:1]))
    out = torch.empty_like(one.expand(len(x), *one.shape[1:]), memory_format=_memory_format(one))
    sums = [buffers.empty_like(out) for _ in groups[1:]] if watcher is None else []
    totals = [*sums, out]
    inputs_of_groups = _selector(call, groups)
    for rows in some_rows(out, _BLOCK if watcher is None else _BLOCK // 4):  # what is watched shares the cache
        so_far, blocks = None, [total[rows] for total in totals] if sums else [out[rows]] * len(groups)
        for stage, (group, inputs, block) in enumerate(zip(groups, inputs_of_groups(x[rows]), blocks, strict=True)):
            so_far = group.sum(inputs, so_far, block)
            if stage == len(groups) - 1 and bias is not None:
                so_far += bias
            if watcher is not None:
                watcher(rows, stage, so_far)
    return out, replace(call, sums=tuple(sums)) if sums else call


def _selector(call: LinearCall, groups: Sequence[Terms]) -> Callable[[Tensor], Iterable[Tensor]]:
    """Makes the inputs of each group of terms from rows of the call's input.

    A matrix product reads columns that lie beside others, a convolution would copy them: the channels of a Linear are
    put in order at once, so that rows too many for a cache are read once.
    """
    if call.is_conv or isinstance(groups[0].channels, slice):
        return lambda x: (group.inputs(x) for group in groups)
    order = torch.cat([group.channels for group in groups]).to(call.input.device)
    return lambda x: select_channels(x, order, -1).split([len(group.channels) for group in groups], dim=-1)


def _memory_format(x: Tensor) -> torch.memory_format:
    for last, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == dims and x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format


def _dtype(call: LinearCall) -> torch.dtype:
    """Sums of squares need more than half precision holds."""
    dtype = torch.promote_types(call.input.dtype, call.weight.dtype)
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _pad(x: Tensor, call: LinearCall) -> Tensor:
    if call.padding == "valid":
        return x
    if call.padding == "same":  # torch puts the odd one at the end
        spans = [d * (k - 1) for k, d in zip(call.weight.shape[2:], call.dilation, strict=True)]
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        sides = [(padding, padding) for padding in call.padding]
    return F.pad(x, [size for side in reversed(sides) for size in side]) if any(map(any, sides)) else x
