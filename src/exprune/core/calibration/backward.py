"""What is propagated back through a network for the gradients at its neurons, and how (docs/method.md, section 8)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def signed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A sum of (rows, classes) logits whose squared gradients are in expectation those of the loss of drawn labels.

    Its gradient at a row's logits is ``root(p) * e - p * <root(p), e>``, with a random sign e for each class: in
    expectation its outer product is the Fisher information, ``diag(p) - p p^T``. Each row tells of all classes, where
    a drawn label tells of one (docs/method.md, section 8). The generator is a CPU's.
    """
    with torch.no_grad():
        p = logits.softmax(1)
        signs = torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).to(p.device)
        gradient = p.sqrt().mul_(2 * signs - 1)
        gradient.addcmul_(p, gradient.sum(1, keepdim=True), value=-1)
    return (logits.masked_fill(p == 0, 0) * gradient).sum()  # a logit may be -inf


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """The network's parameters get no gradients inside the context."""
    learned = [p for p in network.parameters() if p.requires_grad]
    try:
        network.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
