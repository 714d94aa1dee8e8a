"""Tensors of which no rows can be taken: nested, sparse, without values, or inside a transform of torch.func."""

import torch
from torch import Tensor

from exprune.core.calls.layers import LinearCall


def packed(call: LinearCall) -> str | None:
    """Why nothing can be counted of a call; None where it can."""
    for what, x in (("input", call.input), ("weight", call.given)):
        if x.is_nested or x.layout != torch.strided:
            return f"its {what} is nested or sparse; give the model padded, dense ones"
    return None


def transformed(x: Tensor) -> str | None:
    """Why nothing can be tested of a layer that is given this, whatever its values; None where it can."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "inside torch.vmap or another transform of torch.func its rows cannot be told apart; give it the batch"
    return None


def without_values(x: Tensor) -> str | None:
    """Why nothing can be tested now; None where it can."""
    if x.is_meta or type(x).__name__ == "FakeTensor":
        return "its input has no values (meta or fake tensors), so nothing can be tested; ExPrune(sites, None) counts"
    return None
