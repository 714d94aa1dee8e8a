"""A parameter whose weights are stored in another layout; everything but the kernels sees it unchanged."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from exprune.core.errors import SettingError

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_GET_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
# What needs no values, or must reach the parameter itself, whose memory holds a single number.
_WITHOUT_VALUES = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "is_leaf", "nbytes")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad", "grad_fn", "is_cpu", "is_cuda", "is_meta")),
    *(getattr(Tensor, name).__set__ for name in ("requires_grad", "grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.requires_grad_),
    *(Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex),
    torch._has_compatible_shallow_copy_type,
}


class LaidOut(nn.Parameter):
    """A parameter whose weights are stored elsewhere; they are recreated whenever the parameter is read.

    So a copy, a file or a computation gets the model's own weights, and a copy gets an ordinary parameter. Writing to
    it is refused. Writing to a tensor that shares its memory (``detach()``, ``data``, ``state_dict()``) is reported at
    the end of the context.

    Raises:
        SettingError: If it is written to.
    """

    _owner: str  # the name of the layer
    _made: Callable[[], Tensor]
    _given: Callable[[], Tensor | None]  # a tensor handed out as the parameter's own memory, while it exists
    _witnesses: list[tuple[Tensor, int]]  # empty tensors that share their version counter with one handed out

    @staticmethod
    def begin(parameter: nn.Parameter, owner: str, made: Callable[[], Tensor]) -> None:
        """Release a parameter's memory. ``made`` recreates the weights of the layer ``owner``."""
        vars(parameter).update(_owner=owner, _made=made, _given=_nothing, _witnesses=[])
        parameter.__class__ = LaidOut
        with torch._C.DisableTorchFunctionSubclass():
            parameter.data = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)

    def end(self) -> None:
        """Return the weights to memory of the parameter's own."""
        with torch._C.DisableTorchFunctionSubclass():
            self.data = self._made()
        self.__class__ = nn.Parameter  # type: ignore[assignment]
        for attribute in ("_owner", "_made", "_given", "_witnesses"):
            del vars(self)[attribute]

    @property
    def written(self) -> bool:
        """Whether a tensor that shares the parameter's memory was written to."""
        return any(witness._version != version for witness, version in self._witnesses)

    def own(self) -> Tensor:
        """The weights, in the memory that was handed out if it still exists."""
        return self._made() if (given := self._given()) is None else given

    def __deepcopy__(self, memo: dict) -> nn.Parameter:
        with torch.inference_mode(False), torch.no_grad():
            return nn.Parameter(self._made(), self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__deepcopy__({}).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _WITHOUT_VALUES:
                return func(*args, **(kwargs or {}))
            if func == _SET_DATA:
                if args[1] is not args[0]:  # a .to() that changes nothing assigns the same object
                    raise _refused(args[0])
                return None
            used: dict[LaidOut, tuple[Tensor, int]] = {}

            def read(value: Any) -> Any:
                if not isinstance(value, LaidOut):
                    return value
                if value not in used:
                    used[value] = (own := value.own()), own._version
                return used[value][0]

            func = Tensor.detach if func == _GET_DATA else func  # .data would have a version counter of its own
            out = func(*tree_map(read, tuple(args)), **tree_map(read, kwargs or {}))
            for parameter, (own, version) in used.items():
                if own._version != version:
                    raise _refused(parameter)
                if out is own:
                    return parameter
                parameter._remember(own, out)
            return out

    def _remember(self, own: Tensor, out: Any) -> None:
        """Record that an output shares the memory of the weights that were recreated for it."""
        given = self._given()
        for one in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(one, Tensor) or one.layout is not torch.strided or _memory(one) != _memory(own):
                continue
            if given is None:
                witness = own.detach()
                with torch.inference_mode(False):
                    witness.data = own.new_empty(0)
                self._witnesses.append((witness, witness._version))
                if one.shape == own.shape and one.stride() == own.stride():
                    self._given = weakref.ref(one)
            return


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _nothing() -> None:
    return None


def _refused(parameter: LaidOut) -> SettingError:
    return SettingError(
        f"faster: the weight of {parameter._owner} cannot be changed inside the context; change it before or after"
    )


def changes_nothing(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Raise a SettingError if ``fn``, the function of a ``module.to()`` or similar call, would change a weight."""
    for parameter in module.parameters():
        if isinstance(parameter, LaidOut) and fn(parameter) is not parameter:
            raise _refused(parameter)
