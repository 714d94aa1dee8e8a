"""Partial sums of a neuron's terms, and of their squares.

A term ``t_c`` is the contribution of input channel ``c`` to an output: one product in a Linear layer, or the dot
product of one kernel slice with one patch in a convolution (docs/method.md, section 1).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import LinearCall
from exprune.core.partial_sums.elementwise import select_channels


@dataclass(frozen=True)
class Terms:
    """The terms of some input channels for every neuron of a call, with weights (out, terms, *kernel)."""

    call: LinearCall
    channels: slice | Tensor
    weight: Tensor

    @classmethod
    def of(
        cls, call: LinearCall, channels: slice | Tensor, keep: Tensor | None = None, scale: Tensor | None = None
    ) -> "Terms":
        """The terms of some input channels.

        Args:
            call: The call of the layer.
            channels: The input channels.
            keep: Which of them each output channel has (outputs, channels), bool; None means all.
            scale: A factor for each output channel.
        """
        if isinstance(channels, Tensor):
            channels = channels.to(call.weight.device)
            weight = select_channels(call.weight, channels, 1).to(sum_dtype(call))
        else:
            weight = call.weight[:, channels].to(sum_dtype(call))
        beside = (1,) * (weight.dim() - 2)
        if keep is not None:
            weight = weight * keep.to(weight.device).view(*keep.shape, *beside)
        if scale is not None:
            weight = weight * scale.reshape(-1, 1, *beside)
        return cls(call, channels, weight)

    def inputs(self, x: Tensor) -> Tensor:
        """The channels of ``x``, rows of the call's input, that the terms need, in the type of the weights."""
        dim = self.call.channel_dim
        if isinstance(self.channels, slice):
            x = x.narrow(dim, self.channels.start, self.channels.stop - self.channels.start)
        else:
            x = select_channels(x, self.channels, dim)
        return x.to(self.weight.dtype)

    def sum(self, x: Tensor, before: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The sum of the terms for ``x``, a result of `inputs`, in the shape of the rows' output.

        ``before`` is added if given. The sum is written to ``out`` if given, which may be ``before``.
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
        """The sum of the terms' squares, in the shape of the rows' output.

        If a term is one product, ``(w x)^2 = w^2 x^2`` makes this one matrix product. Otherwise the terms of one
        channel at a time are squared and added while they are in the cache (benchmarks/squares.py compares the
        alternatives).
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
        """The patches of each channel (channels, kernel, outputs), and the shape of one channel's outputs.

        ``x`` has the shape (..., channels, *space).
        """
        dims = self.call.spatial_dims
        x = pad(x.movedim(self.call.channel_dim, 0).contiguous(), self.call)
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


def sum_dtype(call: LinearCall) -> torch.dtype:
    """The dtype of sums. Half precision is too coarse for sums of squares, so those are in single precision."""
    dtype = torch.promote_types(call.input.dtype, call.weight.dtype)
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pad(x: Tensor, call: LinearCall) -> Tensor:
    if call.padding == "valid":
        return x
    if isinstance(call.padding, str):  # "same": torch puts an odd extra row or column at the end
        spans = [d * (k - 1) for k, d in zip(call.weight.shape[2:], call.dilation, strict=True)]
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        sides = [(padding, padding) for padding in call.padding]
    return F.pad(x, [size for side in reversed(sides) for size in side]) if any(map(any, sides)) else x
