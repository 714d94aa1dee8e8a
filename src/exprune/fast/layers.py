"""The layers that have a kernel: before a ReLU, behind it, and the prediction head."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core.errors import SettingError
from exprune.fast import kernels
from exprune.fast.layer import MOST_ROWS, FastLayer
from exprune.fast.storage import numbers, room, without_values
from exprune.fast.threads import parts_of, shared


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


class Blocked(FastLayer):
    """A layer whose weights stand in one block for each stage, and one for the rest; its own parameter reads NaN."""

    def __init__(self, name: str, layer: nn.Linear, stages: Stages, dense_seconds: float | None = None) -> None:
        self._stages = stages
        super().__init__(name, layer, dense_seconds)
        tests = self.bias, stages.bounds, stages.lines, stages.least
        self._args = (numbers(self._flat), np.array(stages.widths), stages.order.numpy(), *tests)
        self._rows = np.empty(layer.out_features, np.int32)
        self._x = [np.empty(layer.in_features, np.float32)]

    def restore(self) -> None:
        super().restore()
        del self._flat, self._blocks, self._args

    def _lay_out(self, weight: Tensor) -> Tensor:
        widths, outputs = self._stages.widths, len(weight)
        self._flat = room((weight.numel(),), weight.dtype)
        pieces = self._flat.split([outputs * width for width in widths])
        # Of each stage, and of the rest, the weights (outputs, width) and which terms they are of.
        parts = zip(pieces, self._stages.order.split(widths), strict=True)
        self._blocks = [(piece.view(outputs, -1), terms) for piece, terms in parts]
        for block, terms in self._blocks:
            torch.index_select(weight, 1, terms, out=block)
        return without_values(weight)

    def _write_back(self, weight: Tensor) -> None:
        for block, terms in self._blocks:
            weight[:, terms] = block

    def _dense(self, x: Tensor) -> Tensor:
        (first, terms), *others = self._blocks
        out = F.linear(x[..., terms], first, self.layer.bias)
        for block, terms in others:
            out = out + F.linear(x[..., terms], block)
        return out

    def _row(self, given: int, out: int) -> int:
        outputs = self._shape[0]
        if (threads := parts_of(outputs)) == 1:
            return kernels.staged(*self._args, self._rows, self._x[0], given, out, 0, outputs)
        while len(self._x) < threads:
            self._x.append(np.empty_like(self._x[0]))

        def work(part: int, low: int, high: int) -> int:
            return kernels.staged(*self._args, self._rows, self._x[part], given, out, low, high)

        return shared(work, outputs, threads)


class Up(Blocked):
    """A layer before a ReLU: its neurons stop stage by stage.

    Its output is what the ReLU makes of it, which another ReLU leaves as it is.

    Attributes:
        first: the output of a call by the kernel, until :class:`Down` has seen what becomes of it; ``checked`` then.
    """

    first: Tensor | None = None
    checked = False

    def _forward(self, x: Tensor) -> Tensor:
        out = super()._forward(x)
        if not self.checked and x.numel() <= MOST_ROWS * self.terms:
            self.first = out
        return out


class Head(Blocked):
    """A prediction head, of which the largest output is wanted: the others are dropped stage by stage, to -inf.

    In several threads each drops those that are smaller than another of its own part.

    Args:
        embedding: what looks up rows of the same weight, if anything does: served from the blocks.
    """

    def __init__(
        self,
        name: str,
        layer: nn.Linear,
        stages: Stages,
        embedding: nn.Embedding | None,
        dense_seconds: float | None = None,
    ) -> None:
        self._embedding, self._back = embedding, stages.order.argsort()
        super().__init__(name, layer, stages, dense_seconds)
        if embedding is not None:
            embedding.forward = self._look_up  # type: ignore[assignment, method-assign]

    def restore(self) -> None:
        super().restore()
        if self._embedding is not None:
            del self._embedding.forward

    def _look_up(self, ids: Tensor) -> Tensor:
        rows = torch.cat([F.embedding(ids, block) for block, _ in self._blocks], dim=-1)
        return rows[..., self._back]


class Down(FastLayer):
    """A layer behind a ReLU: the weights of inputs that are exactly zero are not read.

    Args:
        before: the layer before that ReLU, if it is replaced too.
    """

    def __init__(
        self, name: str, layer: nn.Linear, dense_seconds: float | None = None, before: "Up | None" = None
    ) -> None:
        self._rows, self._before = np.empty(layer.in_features, np.int32), before
        super().__init__(name, layer, dense_seconds)
        self._no_bias = np.zeros_like(self.bias)

    def restore(self) -> None:
        super().restore()
        del self._numbers

    def _lay_out(self, weight: Tensor) -> Tensor:
        turned = room((weight.shape[1], weight.shape[0]), weight.dtype)
        turned.copy_(weight.t())
        self._numbers = numbers(turned)
        return turned.t()

    def _write_back(self, weight: Tensor) -> None:
        weight.copy_(self.layer.weight.detach())

    def _dense(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)

    def _forward(self, x: Tensor) -> Tensor:
        if (before := self._before) is not None and before.first is not None:
            self._check_relu(x, before.name, before.first)
            before.first, before.checked = None, True
        return super()._forward(x)

    def _check_relu(self, x: Tensor, name: str, before: Tensor) -> None:
        """The layer before has applied the ReLU already: nothing but that, or its square, may lie between the two."""
        if x.numel() != before.numel() or not any(torch.equal(x.flatten(), of.flatten()) for of in (before, before**2)):
            raise SettingError(
                f"faster: what {self.name} reads is not the ReLU of {name}, nor its square; "
                "choose other sites with select_sites"
            )

    def _row(self, given: int, out: int) -> int:
        if (threads := parts_of(self.terms)) == 1:
            return kernels.down(self._numbers, self.bias, self._rows, given, out, 0, self.terms)
        others = np.empty((threads - 1, self._shape[0]), np.float32)

        def work(part: int, low: int, high: int) -> int:
            bias, to = (self._no_bias, others[part - 1].ctypes.data) if part else (self.bias, out)
            return kernels.down(self._numbers, bias, self._rows, given, to, low, high)

        read = shared(work, self.terms, threads)
        kernels.add(others, out)
        return read
