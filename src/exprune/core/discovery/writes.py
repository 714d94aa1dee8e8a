"""How often each tensor's memory is written to."""

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exprune.core.calls.effects import tensors


class Writes(TorchDispatchMode):
    """Counts how often memory is written to, also by operators that no torch call shows, and under inference mode.

    Operators behind no torch call (of scripted functions, C++ code) are called anew from here, and by that become
    torch calls, which the function mode beside it sees.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, int] = defaultdict(int)

    def of(self, tensor: Tensor) -> int:
        """How often the memory of a tensor was written to; to be compared while the tensor lives."""
        return self._counts[self._memory(tensor)]

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operators of higher order have none
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
