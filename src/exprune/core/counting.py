"""Counting the FLOPs of torch calls with PyTorch's own counter, at little cost (docs/method.md, section 5).

What PyTorch's counter has no formula for and multiplies is counted by a formula of ours where that is simple; the rest
is named, never taken to be nothing.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

# Calls in which FlopCounterMode never counts anything. It handles every operation in Python, so a model under
# it runs up to 1.5 times slower; what stands here runs outside of it. What does not is counted, so a name
# that is missing costs time and nothing else.
_FREE_NAMES = """
    abs add alpha_dropout arange argmax argmin argsort avg_pool2d adaptive_avg_pool2d batch_norm bool cat celu
    chunk clamp clamp_max clamp_min clip clone contiguous cos count_nonzero cumsum detach dim div double dropout
    dropout1d dropout2d elu embedding embedding_bag empty_like eq exp expand expand_as fill flatten float
    full_like gather ge gelu group_norm gt half hardsigmoid hardswish hardtanh index_add index_select
    instance_norm int is_contiguous is_floating_point item layer_norm le leaky_relu log log_softmax logical_and
    logical_not long lt masked_fill max max_pool2d maximum mean min minimum mul narrow ne neg new_empty new_full
    new_ones new_zeros numel ones_like pad permute pow prelu reciprocal relu relu6 repeat reshape rms_norm rsqrt
    scatter scatter_add scatter_reduce selu sigmoid silu sin size softmax split sqrt square squeeze stack stride
    sub sum tanh to tolist topk transpose type_as unbind unsqueeze var view view_as where zero zeros_like
    __add__ __and__ __contains__ __eq__ __ge__ __getitem__ __gt__ __iadd__ __imul__ __isub__ __le__ __len__
    __lt__ __mul__ __ne__ __neg__ __pow__ __radd__ __rmul__ __rsub__ __rtruediv__ __setitem__ __sub__
    __truediv__
""".split()

_FREE = {
    function
    for owner in (torch, Tensor, F)
    for name in _FREE_NAMES
    for function in (getattr(owner, name, None), getattr(owner, f"{name}_", None))
    if function is not None
}


class FlopTally:
    """Runs torch calls and adds up what their matrix products and convolutions cost.

    Attributes:
        flops: what :class:`torch.utils.flop_counter.FlopCounterMode` counts, and :data:`FORMULAS` beside it.
        uncounted: how often an operator was called that may multiply and has no formula, by its name.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.uncounted: Counter[str] = Counter()
        self._counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        self._unknown = _Unknown(self.uncounted)
        self._depth = 0

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if self.counts_all or func in _FREE or getattr(func, "__name__", "") == "__get__":  # that reads an attribute
            return func(*args, **kwargs)
        self.begin()
        try:
            return func(*args, **kwargs)
        finally:
            self.end()

    @property
    def counts_all(self) -> bool:
        """Whether it counts also what no torch call shows: inside :meth:`begin` and :meth:`end`."""
        return self._depth > 0

    def begin(self) -> None:
        """Count all that runs from here on, until :meth:`end`, also operators that no torch call shows."""
        self._depth += 1
        if self._depth == 1:
            self._unknown.__enter__()  # below the counter, which tells it what it does not decompose
            self._counter.__enter__()

    def end(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._counter.__exit__(None, None, None)
            self._unknown.__exit__(None, None, None)
            self.flops += self._counter.get_total_flops()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside of it nothing is counted: for what is no part of the model."""
        if not self.counts_all:
            yield
            return
        depth, self._depth = self._depth, 1
        self.end()
        try:
            yield
        finally:
            self.begin()
            self._depth = depth


class _Unknown(TorchDispatchMode):
    """Notes operators that may multiply and that no formula counts."""

    def __init__(self, noted: Counter[str]) -> None:
        super().__init__()
        self._noted = noted

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        if isinstance(func, torch._ops.OpOverload) and not _counted(func) and _may_multiply(func):
            self._noted[str(func._overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def multiplies(func: torch._ops.OpOverload) -> bool:
    """Whether an operator is a matrix product, a convolution or the like."""
    return _counted(func) or _may_multiply(func)


def _counted(func: torch._ops.OpOverload) -> bool:
    return func._overloadpacket in flop_registry or func._overloadpacket in FORMULAS


def _may_multiply(func: torch._ops.OpOverload) -> bool:
    """By its name; of an operator that is none of PyTorch's own nobody knows, so it may."""
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


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _matrix_vector(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _added_matrix_vector(added: Any, matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _inner(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0]


def _product(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _added_product(added: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _added_batch_product(added: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * left[2] * right[2]


def _grouped_product(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Of rows in groups, each group with a matrix of its own: every row meets one of them."""
    if len(left) == 3 and len(right) == 3:
        return 2 * left[0] * left[1] * left[2] * right[2]
    if len(left) == 2 and len(right) == 3:
        return 2 * left[0] * left[1] * right[2]
    if len(left) == 3:
        return 2 * left[1] * left[2] * right[1]
    return 2 * left[0] * left[1] * right[1]


def _mkldnn_rnn(x: Any, of_input: Any, of_hidden: Any, *args: Any, **kwargs: Any) -> int:
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
