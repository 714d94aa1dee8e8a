"""Test whether a layer's terms add up to its outputs if its tensors are subclasses of Tensor."""

import torch
from torch import Tensor, nn

from exprune.core.calls.kinds import without_values
from exprune.core.calls.layers import LinearCall, per_channel
from exprune.core.partial_sums.elementwise import write_zeros
from exprune.core.partial_sums.input_order import Columns
from exprune.core.partial_sums.terms import Terms

_PLAIN = {Tensor, nn.Parameter, nn.Buffer}


def unlike_its_terms(call: LinearCall, out: Tensor) -> str | None:
    """The reason why partial sums do not give a call's output; None if they do.

    Subclasses of Tensor (quantised, distributed, with units, ...) may compute differently. So the computation of a
    pruned run is tried and compared. Plain tensors are not checked.
    """
    kinds = {"weight": call.given, "input": call.input, "bias": call.bias, "output": out}
    own = {what: type(x).__name__ for what, x in kinds.items() if x is not None and type(x) not in _PLAIN}
    if not own or call.unsupported is not None or not out.numel() or without_values(call.input):
        return None
    what, name = next(iter(own.items()))
    try:
        with torch.no_grad():
            alike = _alike(call, out)
    except Exception as error:  # of a class that is not ours
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"its {what} is of class {name}, which cannot be taken apart into terms ({why})"
    return None if alike else f"its {what} is of class {name}, whose products are not those of its numbers"


def _alike(call: LinearCall, out: Tensor) -> bool:
    places = torch.arange(call.terms, device=out.device)
    groups = [Terms.of(call, places[::2]), Terms.of(call, places[1::2])]
    total = sum((group.sum(group.inputs(call.input)) for group in groups), torch.zeros((), device=out.device))
    if call.bias is not None:
        total = total + per_channel(call.bias, call.spatial_dims)
    Columns.of(call, None)
    zeros = out.clone()
    write_zeros(zeros, torch.ones_like(zeros, dtype=torch.bool))
    largest = out.abs().nan_to_num(0, posinf=0).max()
    near = torch.finfo(out.dtype).eps ** 0.5 * float(largest)
    same = torch.allclose(total.to(out.dtype), out, rtol=0, atol=near, equal_nan=True)
    return same and not bool(zeros.any())
