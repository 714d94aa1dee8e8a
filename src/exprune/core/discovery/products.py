"""Products with weights that are not followed to an activation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from exprune.core.calls.effects import call_name
from exprune.core.calls.formulas import multiplies
from exprune.core.calls.weights import Weight, memory_of
from exprune.core.discovery.layer import Layer
from exprune.core.discovery.records import Seen

# Calls that multiply by weights, other than those of layers.
_OTHER_PRODUCTS = set(
    """
    bilinear einsum tensordot inner mv addmv bmm baddbmm addbmm multi_dot chain_matmul multi_head_attention_forward
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell conv_tbc matmul mm addmm
    grouped_mm scaled_mm scaled_grouped_mm
    """.split()
)


def product_with_weights(
    func: Callable, inputs: list[Tensor], name: str, module: nn.Module, varies: bool
) -> Seen | None:
    """A record of the running module if a call multiplies by weights in a way that is not followed; otherwise None.

    Args:
        func: The torch function.
        inputs: The tensors among its arguments.
        name: The name of the module.
        module: The module.
        varies: Whether some input of the call is not computed from parameters only.
    """
    kind, hidden = call_name(func), isinstance(func, torch._ops.OpOverload) and multiplies(func)
    if not hidden and not (varies and kind in _OTHER_PRODUCTS):
        return None
    weights, why = _weights_among(module, inputs), f"computes {kind}, which is not followed to an activation"
    if hidden:
        why = f"computes {kind} in scripted or C++ code, whose calls cannot be seen when it is pruned"
    elif not weights:
        return None
    terms = weights[0].shape[1] if weights else inputs[0].shape[-1] if inputs and inputs[0].dim() else 1
    return Seen(Layer(name, kind, terms, 1, Weight(module, "weight"), hidden=hidden), why=why)


def _weights_among(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The weights, or parts of weights, among a call's inputs, also those masked by torch.nn.utils.prune."""
    masked = [value for value in module.__dict__.values() if isinstance(value, Tensor)]
    own = {memory_of(p) for p in (*module._parameters.values(), *masked) if p is not None} - {None}
    return [t for t in inputs if t.dim() > 1 and (isinstance(t, nn.Parameter) or memory_of(t) in own)]
