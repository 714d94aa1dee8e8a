"""Partial sums of a neuron's terms, and of their squares, over a range of terms.

A term ``t_c`` is what input channel ``c`` contributes to an output: one product in a Linear layer, the dot
product of one kernel slice with one patch in a Conv2d (docs/method.md, section 1).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.chain import LinearCall


def partial_sum(call: LinearCall, start: int, stop: int, order: Tensor | None, scale: Tensor | None) -> Tensor:
    """``scale * (t_start + ... + t_(stop-1))`` for every output of the call, in its output's shape.

    ``order`` permutes the terms (None: the model's own channel order); ``scale`` is one factor per output channel.
    """
    x, weight = _terms(call, start, stop, order, scale)
    if not call.is_conv:
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, call.stride, call.padding, call.dilation)


def partial_squares(call: LinearCall, start: int, stop: int, order: Tensor | None, scale: Tensor | None) -> Tensor:
    """``scale^2 * (t_start^2 + ... + t_(stop-1)^2)``, likewise.

    For a Linear layer ``(w x)^2 = w^2 x^2``: one matrix product. The square of a convolution's term is the sum
    over all pairs of kernel positions; pairs with the same offset between them share one product image
    ``x(p) x(p + offset)``, so that each offset (13 of them for 3x3) costs one small convolution.
    """
    x, weight = _terms(call, start, stop, order, scale)
    if not call.is_conv:
        return F.linear(x * x, weight * weight)
    x = _pad(x, call)
    (height, width), (down, right) = weight.shape[-2:], call.dilation
    total = None
    for dy in range(height):
        for dx in range(0 if dy == 0 else 1 - width, width):
            shift = (dy * down, dx * right)
            image = _overlap(x, shift, first=True) * _overlap(x, shift, first=False)
            pairs = _overlap(weight, (dy, dx), first=True) * _overlap(weight, (dy, dx), first=False)
            if dy or dx:
                pairs = 2 * pairs
            part = F.conv2d(image, pairs, None, call.stride, 0, call.dilation)
            total = part if total is None else total.add_(part)
    return total


def _terms(
    call: LinearCall, start: int, stop: int, order: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, weight, dim = call.input, call.weight, call.channel_dim
    # Sums of squares need more than half precision holds.
    dtype = torch.promote_types(x.dtype, weight.dtype)
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    if order is None:
        x, weight = x.narrow(dim, start, stop - start), weight.narrow(1, start, stop - start)
    else:
        terms = order[start:stop].to(x.device)
        x, weight = x.index_select(dim, terms), weight.index_select(1, terms)
    x, weight = x.to(dtype), weight.to(dtype)
    if scale is not None:
        weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return x, weight


def _pad(x: Tensor, call: LinearCall) -> Tensor:
    if call.padding == "valid":
        return x
    if call.padding == "same":  # torch puts the odd one at the end
        spans = [d * (k - 1) for k, d in zip(call.weight.shape[-2:], call.dilation, strict=True)]
        (top, bottom), (left, right) = [(span // 2, span - span // 2) for span in spans]
        return F.pad(x, (left, right, top, bottom))
    vertical, horizontal = call.padding
    return F.pad(x, (horizontal, horizontal, vertical, vertical)) if vertical or horizontal else x


def _overlap(x: Tensor, shift: tuple[int, int], first: bool) -> Tensor:
    """The part of ``x`` that lies over itself shifted by ``shift``: of ``x``, or of what lies over it."""
    dy, dx = shift
    height, width = x.shape[-2:]
    top = 0 if first else dy
    left = max(0, -dx) if first else max(0, dx)
    return x[..., top : top + height - dy, left : left + width - abs(dx)]
