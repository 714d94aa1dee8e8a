"""Tensors whose rows cannot be tested: nested, sparse, without values, or inside a transform of torch.func."""

import torch
from torch import Tensor

from exprune.core.calls.layers import LinearCall


def packed(call: LinearCall) -> str | None:
    """The reason why a call's FLOPs cannot be counted; None if they can."""
    for what, x in (("input", call.input), ("weight", call.given)):
        if x.is_nested or x.layout != torch.strided:
            return f"its {what} is nested or sparse; give the model padded, dense tensors"
    return None


def transformed(x: Tensor) -> str | None:
    """The reason why a layer with this input cannot be tested, whatever the values; None if it can."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "its rows cannot be separated inside torch.vmap or another torch.func transform; give it the batch"
    return None


def without_values(x: Tensor) -> str | None:
    """The reason why an input without values cannot be tested; None if it has values."""
    if x.is_meta or type(x).__name__ == "FakeTensor":
        return "its input has no values (meta or fake tensors), so nothing can be tested; ExPrune(sites, None) counts"
    return None
