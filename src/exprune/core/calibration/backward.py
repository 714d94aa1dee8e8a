"""Backward passes for the gradients at a network's neurons (docs/method.md, section 8)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def signed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A scalar whose squared gradients have the same expectation as those of the loss for labels drawn from the model.

    Its gradient with respect to a row's logits is ``root(p) * e - p * <root(p), e>``, with a random sign e for each
    class. The expected outer product is the Fisher information, ``diag(p) - p p^T``. Each row informs about all
    classes, while a drawn label informs about one (docs/method.md, section 8).

    Args:
        logits: Logits (rows, classes).
        generator: The random generator, on the CPU.
    """
    with torch.no_grad():
        p = logits.softmax(1)
        signs = torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).to(p.device)
        gradient = p.sqrt().mul_(2 * signs - 1)
        gradient.addcmul_(p, gradient.sum(1, keepdim=True), value=-1)
    return (logits.masked_fill(p == 0, 0) * gradient).sum()  # a logit may be -inf


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Disable gradients of the network's parameters inside the context."""
    learned = [p for p in network.parameters() if p.requires_grad]
    try:
        network.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
