"""Layouts of a weight (outputs, terms), and what is computed from them. They hold no state of a call."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from exprune.fast import kernels
from exprune.fast.stages import Stages
from exprune.fast.storage import numbers, room
from exprune.fast.threads import parts_of, room_to_work, shared


class Layout(Protocol):
    """The only copy of a layer's weight."""

    def write(self, weight: Tensor) -> None:
        """Write the weight (outputs, terms) in the layer's own layout."""

    def dense(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own output (..., outputs) for ``x`` (..., terms)."""

    def row(self, given: int, out: int) -> int:
        """Compute one row from the address ``given`` to the address ``out``; returns the number of weights read."""


class Blocks:
    """One block of weights per stage, and one for the remaining terms.

    Args:
        weight: The weight (outputs, terms).
        bias: The bias (outputs,), float32.
        stages: The stages.
    """

    def __init__(self, weight: Tensor, bias: NDArray, stages: Stages) -> None:
        self._outputs, self._terms = weight.shape
        flat = room((weight.numel(),), weight.dtype)
        pieces = flat.split([self._outputs * width for width in stages.widths])
        # For each stage, and for the rest: the weights (outputs, width), and the indices of their terms.
        parts = zip(pieces, stages.order.split(stages.widths), strict=True)
        self._blocks = [(piece.view(self._outputs, -1), terms) for piece, terms in parts]
        for block, terms in self._blocks:
            torch.index_select(weight, 1, terms, out=block)
        self._back = stages.order.argsort()
        tests = bias, stages.bounds, stages.lines, stages.least
        self._args = (numbers(flat), np.array(stages.widths), stages.order.numpy(), *tests)

    def write(self, weight: Tensor) -> None:
        for block, terms in self._blocks:
            weight[:, terms] = block

    def dense(self, x: Tensor, bias: Tensor | None) -> Tensor:
        (first, terms), *others = self._blocks
        out = F.linear(x[..., terms], first, bias)
        for block, terms in others:
            out = out + F.linear(x[..., terms], block)
        return out

    def looked_up(self, ids: Tensor) -> Tensor:
        """The weights (..., terms) of some outputs."""
        return torch.cat([F.embedding(ids, block) for block, _ in self._blocks], dim=-1)[..., self._back]

    def row(self, given: int, out: int) -> int:
        outputs, terms = self._outputs, self._terms
        if (threads := parts_of(outputs)) == 1:
            return kernels.staged(*self._args, *room_to_work(outputs, terms), given, out, 0, outputs)

        def work(part: int, low: int, high: int) -> int:
            return kernels.staged(*self._args, *room_to_work(outputs, terms), given, out, low, high)

        return shared(work, outputs, threads)


class Turned:
    """The transposed weight, so that a term that is not needed is a row that is not read.

    Args:
        weight: The weight (outputs, terms).
        bias: The bias (outputs,), float32.
    """

    def __init__(self, weight: Tensor, bias: NDArray) -> None:
        self._outputs, self._terms = weight.shape
        self._turned = room((self._terms, self._outputs), weight.dtype)
        self._turned.copy_(weight.t())
        self._numbers, self._bias, self._no_bias = numbers(self._turned), bias, np.zeros_like(bias)

    def write(self, weight: Tensor) -> None:
        weight.copy_(self._turned.t())

    def dense(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self._turned.t(), bias)

    def row(self, given: int, out: int) -> int:
        if (threads := parts_of(self._terms)) == 1:
            rows, _ = room_to_work(self._terms, 0)
            return kernels.down(self._numbers, self._bias, rows, given, out, 0, self._terms)
        others = np.empty((threads - 1, self._outputs), np.float32)

        def work(part: int, low: int, high: int) -> int:
            bias, to = (self._no_bias, others[part - 1].ctypes.data) if part else (self._bias, out)
            rows, _ = room_to_work(self._terms, 0)
            return kernels.down(self._numbers, bias, rows, given, to, low, high)

        read = shared(work, self._terms, threads)
        kernels.add(others, out)
        return read
