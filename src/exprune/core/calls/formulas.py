"""What torch's operators cost, and which of them may cost something (docs/method.md, section 5).

What PyTorch's counter has no formula for and multiplies is counted by a formula of ours where that is simple; the rest
is named, never taken to be nothing.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def multiplies(func: torch._ops.OpOverload) -> bool:
    """Whether an operator is a matrix product, a convolution or the like."""
    return has_formula(func) or may_multiply(func)


def has_formula(func: torch._ops.OpOverload) -> bool:
    """Whether an operator is counted, by PyTorch's formula or by one of ours."""
    return func._overloadpacket in flop_registry or func._overloadpacket in FORMULAS


def may_multiply(func: torch._ops.OpOverload) -> bool:
    """Whether an operator may be a product, by its name; of one that is none of PyTorch's own nobody knows: it may."""
    name = func._overloadpacket.__name__
    if func.namespace in _KNOWN_NAMESPACES:
        return bool(_PRODUCTS.search(name)) and not _NO_PRODUCTS.search(name)
    return name not in _FREE_ELSEWHERE


_KNOWN_NAMESPACES = {"aten", "prim", "prims", "profiler", "debugprims", "inductor", "c10d", "_c10d_functional"}
_PRODUCTS = re.compile(
    r"mm(?=_|$)|matmul|linear|conv(?=\d|_|o)|rnn|lstm|gru|attention|trilinear|bilinear|cdist|dot(?=_|$)"
    r"|(?<![a-z])mv(?=_|$)|linalg|cholesky|solve|einsum|encoder_layer|_sparse_semi|(?<![a-z])addr(?=_|$)|ger$"
)
_NO_PRODUCTS = re.compile(
    r"upsample|grid_sampl|_fused_sdp_choice|_thnn_fused|pack|reorder|quantize_weight|resolve|check_errors|_to_sparse"
    r"|linalg_(vector_norm|norm|matrix_norm|cross|diagonal|_powsum|vander)"
)
# Operators of torchvision that take no products.
_FREE_ELSEWHERE = {"nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"}

_Shape = Sequence[int]


def _attention(query: _Shape, key: _Shape, value: _Shape, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _matrix_vector(matrix: _Shape, vector: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _added_matrix_vector(added: _Shape, matrix: _Shape, vector: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _inner(left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0]


def _product(left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _added_product(added: _Shape, left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _added_batch_product(added: _Shape, left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * left[2] * right[2]


def _grouped_product(left: _Shape, right: _Shape, *args: Any, **kwargs: Any) -> int:
    """Of rows in groups, each group with a matrix of its own: every row meets one of them."""
    if len(left) == 3 and len(right) == 3:
        return 2 * left[0] * left[1] * left[2] * right[2]
    if len(left) == 2 and len(right) == 3:
        return 2 * left[0] * left[1] * right[2]
    if len(left) == 3:
        return 2 * left[1] * left[2] * right[1]
    return 2 * left[0] * left[1] * right[1]


def _mkldnn_rnn(x: _Shape, of_input: _Shape, of_hidden: _Shape, *args: Any, **kwargs: Any) -> int:
    """One layer in one direction: every step of every sequence meets both matrices."""
    steps = x[0] * x[1]
    return 2 * steps * (of_input[0] * of_input[1] + of_hidden[0] * of_hidden[1])


def _formulas(**by_name: Callable[..., int]) -> dict[Any, Callable[..., int]]:
    """For operators of ATen, of those that this version of PyTorch has and does not count itself."""
    packets = {getattr(torch.ops.aten, name, None): formula for name, formula in by_name.items()}
    return {
        packet: formula for packet, formula in packets.items() if packet is not None and packet not in flop_registry
    }


# By the shapes of the arguments.
FORMULAS = _formulas(
    _scaled_dot_product_flash_attention_for_cpu=_attention,
    _scaled_dot_product_fused_attention_overrideable=_attention,
    _scaled_dot_product_attention_math_for_mps=_attention,
    mkldnn_rnn_layer=_mkldnn_rnn,
    mv=_matrix_vector,
    addmv=_added_matrix_vector,
    addmv_=_added_matrix_vector,
    dot=_inner,
    vdot=_inner,
    _int_mm=_product,
    addmm_=_added_product,
    _addmm_activation=_added_product,
    baddbmm_=_added_batch_product,
    addbmm=_added_batch_product,
    addbmm_=_added_batch_product,
    _grouped_mm=_grouped_product,
)
