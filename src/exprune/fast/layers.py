"""The layers that have a kernel: before a ReLU, behind it, and the prediction head."""

from collections.abc import Callable

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


class Blocked(FastLayer):
    """A layer whose weights stand in one block for each stage, and one for the rest; its own parameter reads NaN.

    A subclass names its kernel.

    Args:
        widths: terms of each stage and of the rest.
        order: (terms,) in which they are evaluated.
    """

    _kernel: Callable[..., int]

    def __init__(
        self, name: str, layer: nn.Linear, widths: list[int], order: Tensor, dense_seconds: float | None
    ) -> None:
        self._widths, self._order = widths, order
        super().__init__(name, layer, dense_seconds)
        self._args = (numbers(self._flat), np.array(widths), order.numpy(), self.bias, self._tests())
        self._rows = np.empty(layer.out_features, np.int32)
        self._x = [np.empty(layer.in_features, np.float32)]

    def _tests(self) -> NDArray:
        """What the kernel tests with."""
        raise NotImplementedError

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Of each stage, and of the rest, the weights (outputs, width) and which terms they are of."""
        outputs = self._shape[0]
        pieces = self._flat.split([outputs * width for width in self._widths])
        parts = zip(pieces, self._order.split(self._widths), strict=True)
        return [(piece.view(outputs, -1), terms) for piece, terms in parts]

    def _lay_out(self, weight: Tensor) -> Tensor:
        self._flat = room((weight.numel(),), weight.dtype)
        for block, terms in self.blocks():
            torch.index_select(weight, 1, terms, out=block)
        return without_values(weight)

    def _write_back(self, weight: Tensor) -> None:
        for block, terms in self.blocks():
            weight[:, terms] = block

    def _dense(self, x: Tensor) -> Tensor:
        (first, terms), *others = self.blocks()
        out = F.linear(x[..., terms], first, self.layer.bias)
        for block, terms in others:
            out = out + F.linear(x[..., terms], block)
        return out

    def _row(self, given: int, out: int) -> int:
        outputs = self._shape[0]
        if (threads := parts_of(outputs)) == 1:
            return self._kernel(*self._args, self._rows, self._x[0], given, out, 0, outputs)
        while len(self._x) < threads:
            self._x.append(np.empty_like(self._x[0]))

        def work(part: int, low: int, high: int) -> int:
            return self._kernel(*self._args, self._rows, self._x[part], given, out, low, high)

        return shared(work, outputs, threads)


class Up(Blocked):
    """A layer before a ReLU: its neurons stop stage by stage.

    Its output is what the ReLU makes of it, which another ReLU leaves as it is.

    Attributes:
        first: the output of its first call by the kernel, until it was seen what becomes of it.

    Args:
        bounds: (stages, outputs): below which sum a neuron stops.
    """

    _kernel = staticmethod(kernels.up)

    def __init__(
        self,
        name: str,
        layer: nn.Linear,
        widths: list[int],
        order: Tensor,
        bounds: Tensor,
        dense_seconds: float | None = None,
    ) -> None:
        self._bounds = bounds.float().contiguous().numpy()
        self.first: Tensor | None = None
        super().__init__(name, layer, widths, order, dense_seconds)

    def _forward(self, x: Tensor) -> Tensor:
        out = super()._forward(x)
        if self.rows and self.rows <= MOST_ROWS and self.first is None:
            self.first = out
        return out

    def _tests(self) -> NDArray:
        return self._bounds


class Head(Blocked):
    """A prediction head, of which the largest output is wanted: the others are dropped stage by stage, to -inf.

    In several threads each drops those that are smaller than another of its own part.

    Args:
        lines: slope, upper bound's offset and margin (stages, outputs), as of :class:`~exprune.core.Dominance`.
        embedding: what looks up rows of the same weight, if anything does: served from the blocks.
    """

    _kernel = staticmethod(kernels.leading)

    def __init__(
        self,
        name: str,
        layer: nn.Linear,
        widths: list[int],
        order: Tensor,
        lines: tuple[Tensor, Tensor, Tensor],
        embedding: nn.Embedding | None,
        dense_seconds: float | None = None,
    ) -> None:
        self._lines = torch.stack(lines, 1).float().numpy()
        self._embedding, self._back = embedding, order.argsort()
        super().__init__(name, layer, widths, order, dense_seconds)
        if embedding is not None:
            embedding.forward = self._look_up  # type: ignore[assignment, method-assign]

    def restore(self) -> None:
        super().restore()
        if self._embedding is not None:
            del self._embedding.forward

    def _look_up(self, ids: Tensor) -> Tensor:
        rows = torch.cat([F.embedding(ids, block) for block, _ in self.blocks()], dim=-1)
        return rows[..., self._back]

    def _tests(self) -> NDArray:
        return self._lines


class Down(FastLayer):
    """A layer behind a ReLU: the weights of inputs that are exactly zero are not read.

    Args:
        before: the layer before that ReLU, if it is replaced too.
    """

    def __init__(
        self, name: str, layer: nn.Linear, dense_seconds: float | None = None, before: "Up | None" = None
    ) -> None:
        self._scratch, self._before = np.empty(layer.in_features, np.int32), before
        super().__init__(name, layer, dense_seconds)

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
        if self._before is not None and self._before.first is not None:
            self._check_relu(x, self._before.first)
            self._before.first = None
            self._before = None
        return super()._forward(x)

    def _check_relu(self, x: Tensor, before: Tensor) -> None:
        """The layer before has applied the ReLU already: nothing but that, or its square, may lie between the two."""
        assert self._before is not None
        if x.numel() != before.numel() or not any(torch.equal(x.flatten(), of.flatten()) for of in (before, before**2)):
            raise SettingError(
                f"faster: what {self.name} reads is not the ReLU of {self._before.name}, nor its square; "
                "choose other sites with select_sites"
            )

    def _row(self, given: int, out: int) -> int:
        if (threads := parts_of(self.terms)) == 1:
            return kernels.down(self._numbers, self.bias, self._scratch, given, out, 0, self.terms)
        sums = np.zeros((threads, self._shape[0]), np.float32)
        none = np.zeros_like(self.bias)

        def work(part: int, low: int, high: int) -> int:
            bias, to = (none, sums[part].ctypes.data) if part else (self.bias, out)
            return kernels.down(self._numbers, bias, self._scratch, given, to, low, high)

        read = shared(work, self.terms, threads)
        kernels.add(sums, out)
        return read
