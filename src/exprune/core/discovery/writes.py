"""Count the writes to each tensor's memory."""

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exprune.core.calls.effects import tensors


class Writes(TorchDispatchMode):
    """Count writes to memory, including those of operators that no torch call shows, and those in inference mode.

    Operators without a torch call (of scripted functions, C++ code) are called again from here. This makes them torch
    calls, which the function mode can see.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, int] = defaultdict(int)

    def of(self, tensor: Tensor) -> int:
        """The number of writes to a tensor's memory. Compare numbers only while the tensor exists."""
        return self._counts[self._memory(tensor)]

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # higher-order operators have none
        for place, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(args[place] if place < len(args) else kwargs.get(argument.name)):
                    self._counts[self._memory(tensor)] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _memory(tensor: Tensor) -> int:
        try:
            return int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # sparse, nested, ...
            return id(tensor)
