"""The stages in which the outputs of a layer are computed."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Stages(NamedTuple):
    """The stages in which a layer's outputs are computed, and the bounds at which they stop.

    Attributes:
        widths: The number of terms of each stage, and of the rest.
        order: The order in which terms are evaluated (terms,).
        bounds: See `exprune.fast.kernels.staged`.
        lines: See `exprune.fast.kernels.staged`.
        least: See `exprune.fast.kernels.staged`.
    """

    widths: list[int]
    order: Tensor
    bounds: NDArray
    lines: NDArray
    least: np.float32

    @classmethod
    def below(cls, widths: list[int], order: Tensor, bounds: Tensor) -> "Stages":
        """Outputs before a ReLU, which stop if their sum is below the bounds (stages, outputs)."""
        none = np.empty((0, 3, bounds.shape[1]), np.float32)
        return cls(widths, order, bounds.float().contiguous().numpy(), none, np.float32(0))

    @classmethod
    def leading(cls, widths: list[int], order: Tensor, lines: tuple[Tensor, Tensor, Tensor]) -> "Stages":
        """Logits, which stop if another is larger, by slope, offset and margin of `exprune.core.Dominance`."""
        none = np.empty((0, lines[0].shape[1]), np.float32)
        return cls(widths, order, none, torch.stack(lines, 1).float().numpy(), np.float32(-np.inf))
