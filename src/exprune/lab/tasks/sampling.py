"""Labels drawn from a network's own predictions: what its Fisher information needs."""

import torch
from torch import Tensor


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class per row of (rows, classes), by its probability. The generator is a CPU's."""
    probabilities = logits.detach().softmax(1).cpu()
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)
