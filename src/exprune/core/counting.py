"""Counting the FLOPs of torch calls with PyTorch's own counter, at little cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

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
    """Runs torch calls and adds up what :class:`torch.utils.flop_counter.FlopCounterMode` counts in them."""

    def __init__(self) -> None:
        self.flops = 0
        self._counter = FlopCounterMode(display=False)

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if func in _FREE or getattr(func, "__name__", "") == "__get__":  # the latter reads an attribute
            return func(*args, **kwargs)
        with self._counter:
            out = func(*args, **kwargs)
        self.flops += self._counter.get_total_flops()
        return out
