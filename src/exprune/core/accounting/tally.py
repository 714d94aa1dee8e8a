"""Counting the FLOPs of torch calls with PyTorch's own counter, at little cost (docs/method.md, section 5)."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from exprune.core.calls.formulas import FORMULAS, has_formula, may_multiply

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

    def __getstate__(self) -> dict[str, Any]:  # PyTorch's counter cannot be pickled
        return {"flops": self.flops, "uncounted": self.uncounted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FlopTally.__init__(self)
        self.flops = state["flops"]
        self.uncounted.update(state["uncounted"])

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if self.counts_all or func in _FREE or getattr(func, "__name__", "") == "__get__":  # that reads an attribute
            return func(*args, **kwargs)
        self.begin()
        try:
            return func(*args, **kwargs)
        finally:
            self.end()

    def _higher_order(self, func: torch._ops.HigherOrderOperator, args: tuple, kwargs: dict) -> Any:
        """Run an operator that is given functions; their own calls come here one by one.

        FlopCounterMode would run both branches of torch.cond, and refuse most others.
        """
        if func.name() == "flex_attention":
            self.flops += _attention(*args[:3])
        elif func.name() not in _CONTROL_FLOW:
            self.uncounted[f"higher_order.{func.name()}"] += 1
        with self.paused():
            return func(*args, **kwargs)

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


# Operators that compute nothing but what the functions do that they are given.
_CONTROL_FLOW = {"cond", "while_loop", "scan", "associative_scan", "map_impl", "tag_activation_checkpoint"}


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """FLOPs of attention over all pairs of (batch, heads, tokens, numbers)."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class _Unknown(TorchDispatchMode):
    """Notes operators that may multiply and that no formula counts."""

    def __init__(self, noted: Counter[str]) -> None:
        super().__init__()
        self._noted = noted

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        if isinstance(func, torch._ops.OpOverload) and not has_formula(func) and may_multiply(func):
            self._noted[str(func._overloadpacket)] += 1
        return func(*args, **(kwargs or {}))
