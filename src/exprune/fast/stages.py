"""In which stages the outputs of a layer are computed."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Stages(NamedTuple):
    """In which stages a layer's outputs are computed, and which of them stop.

    Attributes:
        widths: terms of each stage and of the rest.
        order: (terms,) in which they are evaluated.
        bounds, lines, least: as of :func:`exprune.fast.kernels.staged`.
    """

    widths: list[int]
    order: Tensor
    bounds: NDArray
    lines: NDArray
    least: np.float32

    @classmethod
    def below(cls, widths: list[int], order: Tensor, bounds: Tensor) -> "Stages":
        """Outputs before a ReLU stop where their sum lies below the bounds (stages, outputs)."""
        none = np.empty((0, 3, bounds.shape[1]), np.float32)
        return cls(widths, order, bounds.float().contiguous().numpy(), none, np.float32(0))

    @classmethod
    def leading(cls, widths: list[int], order: Tensor, lines: tuple[Tensor, Tensor, Tensor]) -> "Stages":
        """Logits stop where another is larger, by slope, offset and margin of :class:`~exprune.core.Dominance`."""
        none = np.empty((0, lines[0].shape[1]), np.float32)
        return cls(widths, order, none, torch.stack(lines, 1).float().numpy(), np.float32(-np.inf))
