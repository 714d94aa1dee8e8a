"""Layers as a decoding step runs them: weights laid out anew, and what takes the place of forward."""

import functools
import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core.errors import SettingError
from exprune.fast import kernels
from exprune.fast.storage import numbers, room, without_values
from exprune.fast.threads import parts_of, shared

MOST_ROWS = 8  # of one call; more are quicker as a matrix product
_TRIALS = 8  # rows after which a layer that is slower than dense goes back


log = logging.getLogger(__name__)


@functools.cache
def _say_dense() -> None:
    """Once in a process: every prompt is such a call."""
    log.info("faster: calls of more than %d rows, prompts and large batches, run densely", MOST_ROWS)


class FastLayer:
    """A Linear layer whose forward is replaced, with its weight laid out anew, until :meth:`restore`.

    Attributes:
        dense_seconds: what a row takes the layer's own forward, to which a kernel that takes longer gives way; None: it
            never does.
        seconds: what the first rows took the kernel.
        read: weights read by the kernel. rows: those that it served.
        active: whether the layer is replaced now. kept: whether it was when the context ended, or still is.
    """

    def __init__(self, name: str, layer: nn.Linear, dense_seconds: float | None = None) -> None:
        self.name, self.layer, self.dense_seconds = name, layer, dense_seconds
        self.read = self.rows = 0
        self.seconds: list[float] = []
        self.active = self.kept = self._trying = True
        self.bias = np.zeros(layer.out_features, np.float32)
        if layer.bias is not None:
            self.bias[:] = layer.bias.detach().float().numpy()
        self._strides = layer.weight.stride()
        self._shape = tuple(layer.weight.shape)
        self.terms = self._shape[1]
        with torch.inference_mode(False), torch.no_grad():  # or the weight could not be trained again
            layer.weight.data = self._lay_out(layer.weight.detach())
        self._version = layer.weight._version, layer.weight.data_ptr()
        layer.forward = self._forward  # type: ignore[assignment, method-assign]

    @property
    def density(self) -> float:
        """The share of the weights that was read, of the rows that the kernel served; NaN where there were none."""
        return self.read / (self.rows * self._shape[0] * self._shape[1]) if self.rows else float("nan")

    @property
    def changed(self) -> bool:
        """Whether someone wrote to the weight, or put another in its place."""
        return (self.layer.weight._version, self.layer.weight.data_ptr()) != self._version

    def restore(self) -> None:
        """Bring back the weight and the layer's own forward."""
        self.active = False
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.empty_strided(self._shape, self._strides, dtype=self.layer.weight.dtype)
            self._write_back(weight)
            self.layer.weight.data = weight
        del self.layer.forward

    def _lay_out(self, weight: Tensor) -> Tensor:
        """Copy the weight; what stands in its place until it is restored."""
        raise NotImplementedError

    def _write_back(self, weight: Tensor) -> None:
        raise NotImplementedError

    def _dense(self, x: Tensor) -> Tensor:
        """The layer's own output, from the same copy of the weights."""
        raise NotImplementedError

    def _row(self, given: int, out: int) -> int:
        """Compute one row, from one address to the other; returns how many weights were read."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        if self.layer.training:
            raise SettingError(f"faster: {self.name} is in training mode; call model.eval()")
        if torch.is_grad_enabled():
            raise SettingError("faster: gradients are enabled, and the kernels have none; use torch.inference_mode()")
        rows = x.numel() // self.terms
        if rows > MOST_ROWS:
            _say_dense()
            return self._dense(x)
        # The weights that stream by have thrown the interpreter out of the cache: every call here takes its time.
        given = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        out = torch.empty(*x.shape[:-1], self._shape[0])
        start = time.perf_counter() if self._trying else 0.0
        at, to = given.data_ptr(), out.data_ptr()
        for row in range(rows):
            self.read += self._row(at + 4 * row * self.terms, to + 4 * row * self._shape[0])
        self.rows += rows
        if self._trying:
            self._tried((time.perf_counter() - start) / rows)
        return out if x.dtype is torch.float32 else out.to(x.dtype)

    def _tried(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._trying = len(self.seconds) < _TRIALS
        slower = self.dense_seconds is not None and statistics.median(self.seconds) > self.dense_seconds
        if slower and not self._trying:
            self.restore()
            self.kept = False


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
