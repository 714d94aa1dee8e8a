"""Iterate over the user's batches, and call the model with one of them."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from exprune.core.errors import SettingError

Call = Callable[[nn.Module, Any], Any]

_LABELS = ("labels", "label")  # keys of a mapping that hold labels, not inputs


class Batches:
    """A re-iterable list of batches, moved to the model's device and floating-point type.

    Args:
        model: A module in eval mode.
        batches: A DataLoader or any iterable of batches. A batch is a tensor, a tuple (inputs, labels), a mapping of
            keyword arguments, a ``Data`` object of PyTorch Geometric, or whatever ``call`` accepts. A single tensor,
            mapping or ``Data`` object counts as a list of one batch.
        call: A function ``call(model, batch)`` that runs the model. By default, the usual ways to call a model are
            tried on the first batch, and the first that works is used.

    Raises:
        SettingError: If there are no batches, if an input is NaN or infinite, or if the model cannot be called.
    """

    def __init__(self, model: nn.Module, batches: Any, call: Call | None = None) -> None:
        check_eval(model)
        alone = isinstance(batches, Tensor | Mapping) or hasattr(batches, "edge_index")
        if not alone and not isinstance(batches, Iterable):
            raise SettingError(f"batches={type(batches).__name__}: must be a DataLoader or a list of batches")
        self.batches = [batches] if alone else list(batches)
        if not self.batches:
            raise SettingError("batches: there is none (a generator is exhausted after one pass; give a list)")
        self._model = model
        for index, batch in enumerate(self.batches):
            _check_finite(batch, index)
        self.call = call or _call_of(model, self._placed(self.batches[0]))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self._placed, self.batches)

    def part(self, which: slice) -> "Batches":
        """The batches of a slice, with the same model and call."""
        some = object.__new__(Batches)
        some.batches, some._model, some.call = self.batches[which], self._model, self.call
        return some

    def _placed(self, batch: Any) -> Any:
        like = next(self._model.parameters(), torch.zeros(()))

        def placed(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(like.device, like.dtype if x.is_floating_point() else None)

        if hasattr(batch, "edge_index") and hasattr(batch, "to"):
            return batch.to(like.device)
        return tree_map(placed, dict(batch) if isinstance(batch, Mapping) else batch)


def check_eval(model: nn.Module) -> None:
    """Raise a SettingError if the model is not a module, or is in training mode."""
    if not isinstance(model, nn.Module):
        raise SettingError(f"model={type(model).__name__}: must be a torch.nn.Module")
    if model.training:
        raise SettingError("the model is in training mode; call model.eval()")


def data_rows(batch: Any) -> Tensor | None:
    """The batch's 2-D attention mask as booleans, True for tokens that are not padding; None if there is no mask."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def labels_of(batch: Any) -> Tensor | None:
    """The batch's integer labels, or None if it has none."""
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in _LABELS if name in batch), None)
    elif isinstance(batch, tuple | list):
        found = batch[-1] if len(batch) > 1 else None
    else:
        found = getattr(batch, "y", None)
    whole = isinstance(found, Tensor) and not found.is_floating_point() and found.dtype is not torch.bool
    return found if whole else None


def _check_finite(batch: Any, index: int) -> None:
    leaves = tree_leaves(dict(batch)) if isinstance(batch, Mapping) else tree_leaves(batch)
    for x in leaves if not hasattr(batch, "edge_index") else [getattr(batch, "x", None)]:
        if isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all():
            raise SettingError(f"batch {index}: its inputs hold NaN or infinite values")


def _call_of(model: nn.Module, batch: Any) -> Call:
    tried = []
    for what, call in _ways(model, batch):
        try:
            with torch.no_grad():
                call(model, batch)
        except Exception as error:  # the model is the user's: any error is possible
            tried.append(f"{what}: {_first_line(error)}")
        else:
            return call
    raise SettingError(
        f"the model cannot be called with a batch of type {type(batch).__name__} ({'; '.join(tried)}); give "
        "call=lambda model, batch: ..."
    )


def _ways(model: nn.Module, batch: Any) -> Iterator[tuple[str, Call]]:
    if isinstance(batch, Mapping):
        yield "model(**batch)", lambda model, batch: model(**{k: v for k, v in batch.items() if k not in _LABELS})
        return
    if isinstance(batch, tuple | list):
        yield "model(batch[0])", lambda model, batch: model(batch[0])
        if len(batch) > 2:
            yield "model(*batch[:-1])", lambda model, batch: model(*batch[:-1])
        yield "model(*batch)", lambda model, batch: model(*batch)
        return
    yield "model(batch)", lambda model, batch: model(batch)
    names = [name for name in inspect.signature(model.forward).parameters if getattr(batch, name, None) is not None]
    if not isinstance(batch, Tensor) and names:
        how = ", ".join(f"{name}=batch.{name}" for name in names)
        yield f"model({how})", lambda model, batch: model(**{name: getattr(batch, name) for name in names})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:120] or type(error).__name__
