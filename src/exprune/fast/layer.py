"""A layer as a decoding step runs it: its weight laid out anew, and what takes the place of its forward."""

import functools
import logging
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from exprune.core.errors import SettingError

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

    def compile(self) -> None:
        """Compute an uncounted row of zeros: a kernel is compiled, or loaded, by its first, before a clock runs."""
        given, out = np.zeros(self.terms, np.float32), np.empty(self._shape[0], np.float32)
        self._row(given.ctypes.data, out.ctypes.data)

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
