"""Count the FLOPs of torch calls like PyTorch's own counter, with less overhead (docs/method.md, section 5)."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._ops import OperatorBase, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from exprune.core.calls.effects import functions, tensors
from exprune.core.calls.formulas import flops_of, formula_of
from exprune.core.calls.operators import CONTROL_FLOW, HIDING, costs_nothing, made_of_others

# Calls that cost nothing worth counting. The counter handles every operator in Python, which slows the model down, so
# these calls bypass it. All others go through the counter, so a name missing here costs time but no accuracy.
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

_FREE = functions(*_FREE_NAMES, *(f"{name}_" for name in _FREE_NAMES))


class FlopCounter:
    """Run torch calls, and add up the FLOPs of their matrix products and convolutions.

    Attributes:
        flops: What ``torch.utils.flop_counter.FlopCounterMode`` counts, and what our additional formulas count.
        uncounted: The number of calls of each operator without a FLOP formula, by its name.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.uncounted: Counter[str] = Counter()
        self._counter = _Counter(self)
        self._depth = 0

    def __getstate__(self) -> dict[str, Any]:  # PyTorch's counter cannot be pickled
        return {"flops": self.flops, "uncounted": self.uncounted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FlopCounter.__init__(self)
        self.flops = state["flops"]
        self.uncounted.update(state["uncounted"])

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if func in _FREE:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in HIDING:
            self.uncounted[f"aten.{name}"] += 1
            with self.paused():
                return func(*args, **kwargs)
        if self.counts_all or name == "__get__":  # __get__ reads an attribute
            return func(*args, **kwargs)
        self.begin()
        try:
            return func(*args, **kwargs)
        finally:
            self.end()

    @property
    def counts_all(self) -> bool:
        """Whether operators that no torch call shows are counted too: between `begin` and `end`."""
        return self._depth > 0

    def begin(self) -> None:
        """Count everything from here on until `end`, including operators that no torch call shows."""
        self._depth += 1
        if self._depth == 1:
            self._counter.__enter__()

    def end(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._counter.__exit__(None, None, None)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside this context; for work that is not part of the model."""
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


class _Counter(TorchDispatchMode):
    """Count the FLOPs of every operator, and record the names of those without a formula."""

    supports_higher_order_operators = True

    def __init__(self, flop_counter: FlopCounter) -> None:
        super().__init__()
        self._flop_counter = flop_counter

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return self._higher_order(func, args, kwargs)
        if made_of_others(func) and not any(x.is_nested for x in tensors((args, kwargs))):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if (formula := formula_of(func)) is not None:
            self._count(func._overloadpacket, formula, args, kwargs, out)
        elif not costs_nothing(func):
            self._flop_counter.uncounted[str(func._overloadpacket)] += 1
        return out

    def _higher_order(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Handle an operator that takes functions, such as ``torch.cond``; they are counted when they are called."""

        def with_count(x: Any) -> Any:
            if not callable(x) or isinstance(x, OperatorBase):
                return x

            def inside(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return x(*args, **kwargs)

            return inside

        args, kwargs = tree_map(with_count, (args, kwargs))
        out = func(*args, **kwargs)
        if (formula := formula_of(func)) is not None:
            self._count(func, formula, args, kwargs, out)
        elif func.name() not in CONTROL_FLOW:
            self._flop_counter.uncounted[f"higher_order.{func.name()}"] += 1
        return out

    def _count(self, operator: object, formula: Callable[..., int], args: tuple, kwargs: dict, out: Any) -> None:
        with torch._C.DisableTorchFunction():  # only shapes are read here
            flops = flops_of(formula, args, kwargs, out)
        if flops is None:
            self._flop_counter.uncounted[f"{operator} of sparse or nested tensors"] += 1
        else:
            self._flop_counter.flops += flops
