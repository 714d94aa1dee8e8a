"""FLOP formulas of torch's operators (docs/method.md, section 5).

Operators that multiply and for which PyTorch's counter has no formula are counted by our own formulas where these are
simple. The others are reported by name, and never assumed to cost nothing.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from math import prod
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry, shape_wrapper

from exprune.core.calls.effects import tensors
from exprune.core.calls.operators import costs_nothing, made_of_others


class Cost(Enum):
    """What is known of an operator's cost. Every operator has exactly one of these kinds."""

    OTHERS = "that of the operators it calls"
    FORMULA = "PyTorch's counter or we have a formula"
    NOTHING = "nothing worth counting"
    UNKNOWN = "unknown, so it is reported by name"


def cost_of(op: OpOverload) -> Cost:
    """The kind of an operator's cost."""
    if made_of_others(op):
        return Cost.OTHERS
    if formula_of(op) is not None:
        return Cost.FORMULA
    return Cost.NOTHING if costs_nothing(op) else Cost.UNKNOWN


def multiplies(op: OpOverload) -> bool:
    """Whether an operator is a matrix product, a convolution or similar, or might be."""
    return formula_of(op) is not None or not costs_nothing(op)


def formula_of(op: Any) -> Callable[..., int] | None:
    """The FLOP formula of an operator, a function of its arguments and its result ``out_val``; None if unknown."""
    packet = getattr(op, "_overloadpacket", op)
    return flop_registry.get(packet) or FORMULAS.get(packet)


def flops_of(formula: Callable[..., int], args: tuple, kwargs: dict, out: Any) -> int | None:
    """The FLOPs of a call, 2 per multiply-add of real numbers; None if they cannot be determined from its arguments.

    A multiply-add of complex numbers counts as 4 of real numbers. A sparse matrix multiplies its stored values only.
    For several sparse matrices it is unknown how often their values meet, and for nested tensors the contents are
    unknown.
    """
    times, sparse = 1, []
    for x in tensors((args, kwargs)):
        if x.is_nested:
            return None
        times = max(times, multiply_adds(x.dtype))
        if x.layout in _SPARSE:
            sparse.append(x)
    if len(sparse) > 1:
        return None
    flops = times * int(formula(*args, **kwargs, out_val=out))
    for x in sparse:
        stored = x._values() if x.layout == torch.sparse_coo else x.values()
        flops = flops * stored.numel() // max(x.numel(), 1)
    return flops


def multiply_adds(dtype: torch.dtype) -> int:
    """The number of real multiply-adds in one multiply-add of this type."""
    return _MULTIPLY_ADDS.get(dtype, 1)


# One element of a float4 tensor holds two numbers.
_MULTIPLY_ADDS = {torch.complex32: 4, torch.complex64: 4, torch.complex128: 4}
if hasattr(torch, "float4_e2m1fn_x2"):
    _MULTIPLY_ADDS[torch.float4_e2m1fn_x2] = 2
_SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}

_Shape = Sequence[int]


def _rows(left: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    """Every number of the result is a sum over the last dimension of the left argument."""
    return 2 * prod(out_shape) * left[-1]


def _added_rows(added: _Shape, left: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    return _rows(left, out_shape=out_shape)


def _added_batch(added: _Shape, left: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    """The batch is summed over as well."""
    return left[0] * _rows(left, out_shape=out_shape)


def _grouped(left: _Shape, right: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    """Rows in groups, each group with a matrix of its own: every row is multiplied by one matrix."""
    groups_of_terms = len(left) == len(right) == 2
    return _rows(left, out_shape=out_shape[1:] if groups_of_terms else out_shape)


def _each(lefts: Sequence[_Shape], rights: Sequence[_Shape], *args: Any, **kwargs: Any) -> int:
    return sum(2 * prod(left) * right[-1] for left, right in zip(lefts, rights, strict=True))


def _sparse_reduced(left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(left) * right[-1]


def _sampled(sampled: _Shape, left: _Shape, *args: Any, **kwargs: Any) -> int:
    """Only the stored numbers of the product are computed."""
    return 2 * prod(sampled) * left[-1]


def _attention(query: _Shape, key: _Shape, value: _Shape, *args: Any, **kwargs: Any) -> int:
    """Every query is multiplied by every key and value; several heads may share keys and values."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _mkldnn_rnn(x: _Shape, of_input: _Shape, of_hidden: _Shape, *args: Any, **kwargs: Any) -> int:
    """One layer in one direction: every step of every sequence is multiplied by both matrices."""
    return 2 * prod(x[:-1]) * (prod(of_input) + prod(of_hidden))


def _rnn(x: _Shape, weights: Sequence[_Shape], *args: Any, **kwargs: Any) -> int:
    """All layers: every step of every sequence is multiplied by all matrices. Weights of one dimension are biases."""
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _convolution(x: _Shape, weight: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _transposed_convolution(x: _Shape, weight: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(x) * prod(weight[1:])


def _time_first_convolution(x: _Shape, weight: _Shape, *args: Any, out_shape: _Shape, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[:-1])


_BY_SHAPE: dict[Callable[..., int], str] = {
    _rows: """
    mv dot vdot linear _int_mm mkldnn_linear _scaled_mm_v2 _mixed_dtypes_linear _weight_int8pack_mm _weight_int4pack_mm
    _weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit
    """,
    _added_rows: "addmv addmv_ addmm_ baddbmm_ _addmm_activation _sparse_addmm",
    _added_batch: "addbmm addbmm_",
    _grouped: "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2",
    _each: "_foreach_mm",
    _sparse_reduced: "_sparse_mm_reduce_impl",
    _sampled: "sparse_sampled_addmm",
    _attention: """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_attention_math_for_mps _triton_scaled_dot_attention
    """,
    _mkldnn_rnn: "mkldnn_rnn_layer",
    _rnn: "_cudnn_rnn miopen_rnn",
    _convolution: """
    cudnn_convolution_relu cudnn_convolution_add_relu mkldnn_convolution miopen_convolution miopen_convolution_relu
    miopen_convolution_add_relu miopen_depthwise_convolution _mps_convolution _nnpack_spatial_convolution
    _conv_depthwise2d conv_depthwise3d slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d
    """,
    _transposed_convolution: """
    cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose slow_conv_transpose2d
    slow_conv_transpose3d
    """,
    _time_first_convolution: "conv_tbc",
}

# Only operators that this version of PyTorch has.
FORMULAS: dict[Any, Callable[..., int]] = {
    packet: shape_wrapper(formula)
    for formula, names in _BY_SHAPE.items()
    for name in names.split()
    if (packet := getattr(torch.ops.aten, name, None)) is not None
}
