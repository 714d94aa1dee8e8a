"""Sharpness-aware minimisation (Foret, Kleiner, Mobahi, Neyshabur 2021): descend from the worst weights nearby."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def sharp(network: nn.Module, closure: Callable[[], Any], radius: float) -> Callable[[], Any]:
    """A closure that computes gradients at weights moved by ``radius`` along the gradient; it computes gradients twice.

    Args:
        network: The network.
        closure: Computes the network's gradients, and returns the loss.
        radius: The distance.
    """

    def sharper() -> Any:
        loss = closure()
        both = [(p.detach(), p.grad) for p in network.parameters() if p.grad is not None]
        if not both:  # Lightning skips batches without a loss
            return loss
        learned, gradients = [p for p, _ in both], [gradient for _, gradient in both]
        norm = torch.nn.utils.get_total_norm(gradients)
        steps = list(torch._foreach_mul(gradients, radius / norm.clamp(min=1e-12)))
        torch._foreach_add_(learned, steps)
        try:
            with _statistics_kept(network):
                closure()
        finally:
            torch._foreach_sub_(learned, steps)
        return loss

    return sharper


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Do not update the running statistics of BatchNorms inside, because they belong to the unmoved weights."""
    momenta = {m: m.momentum for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for module in momenta:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
