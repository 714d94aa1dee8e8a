"""A layer in a decoding step: its weight in another layout, and the replacement of its forward."""

import functools
import logging
import statistics
import threading
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exprune.core.errors import SettingError
from exprune.fast.layouts import Layout
from exprune.fast.methods import replace_methods, restore_methods
from exprune.fast.weight import LaidOut

MOST_ROWS = 8  # of one call; for more rows a matrix product is faster
_TRIALS = 8  # rows after which a layer that is slower than its dense forward returns to it
_changing = threading.RLock()  # held while a layer's counts change, or while it is restored

log = logging.getLogger(__name__)


@functools.cache
def _say_dense() -> None:
    """Log once per process, because every prompt is such a call."""
    log.info("faster: calls of more than %d rows, prompts and large batches, run densely", MOST_ROWS)


class FastLayer:
    """A Linear layer whose forward is replaced, and whose weight has another layout, until `restore`.

    Any number of threads may call it at the same time: the state of a call belongs to the call or its thread.

    Attributes:
        name: The name of the layer.
        layer: The layer.
        dense_seconds: The time of the dense forward for one row. A slower kernel is abandoned. None never abandons it.
        seconds: The times of the kernel's first rows.
        read: The number of weights that the kernel has read.
        rows: The number of rows that the kernel has served.
        called: Whether any row came, served by the kernel or densely.
        active: Whether the layer is replaced now.
        kept: Whether it was still replaced when the context ended, or is now.
    """

    def __init__(self, name: str, layer: nn.Linear, dense_seconds: float | None = None) -> None:
        self.name, self.layer, self.dense_seconds = name, layer, dense_seconds
        self.read = self.rows = 0
        self.seconds: list[float] = []
        self.active = self.kept = self._trying = True
        self.called = False
        self._weight, self._bias = nn.Module.get_parameter(layer, "weight"), layer.bias
        self.bias = self._bias_now()
        self._strides = layer.weight.stride()
        self._shape = tuple(layer.weight.shape)
        self.terms = self._shape[1]
        with torch.inference_mode(False), torch.no_grad():  # otherwise the weight could not be trained later
            self._layout: Layout | None = self._lay_out(layer.weight.detach())
            LaidOut.begin(self._weight, name, self._made)
        replace_methods(layer, forward=self._forward)

    def compile(self) -> None:
        """Compute one row of zeros without counting it, so that the kernel is compiled before timing begins."""
        assert self._layout is not None
        given, out = np.zeros(self.terms, np.float32), np.empty(self._shape[0], np.float32)
        self._layout.row(given.ctypes.data, out.ctypes.data)

    @property
    def density(self) -> float:
        """The share of the weights that was read, in the rows that the kernel served; NaN if there were none."""
        return self.read / (self.rows * self._shape[0] * self._shape[1]) if self.rows else float("nan")

    @property
    def changed(self) -> str | None:
        """The parameter that was written to or replaced, ``"weight"`` or ``"bias"``; None if neither was."""
        if not isinstance(self._weight, LaidOut) or self._weight.written or self.layer.weight is not self._weight:
            return "weight"
        if self.layer.bias is not self._bias or not np.array_equal(self._bias_now(), self.bias, equal_nan=True):
            return "bias"
        return None

    def restore(self) -> None:
        """Restore the weight and the layer's own forward."""
        with _changing:
            if not self.active:
                return
            self.active = False
            if isinstance(self._weight, LaidOut):
                with torch.inference_mode(False), torch.no_grad():
                    self._weight.end()
            restore_methods(self.layer, "forward")
            self._layout = None  # calls that have begun in other threads still hold it

    def _bias_now(self) -> NDArray:
        """A copy of the bias (outputs,), float32."""
        if self.layer.bias is None:
            return np.zeros(self.layer.out_features, np.float32)
        return self.layer.bias.detach().float().numpy().copy()

    def _made(self) -> Tensor:
        """The weight in its original layout, in new memory."""
        assert self._layout is not None
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.empty_strided(self._shape, self._strides, dtype=self._weight.dtype)
            self._layout.write(weight)
        return weight

    def _lay_out(self, weight: Tensor) -> Layout:
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        layout, own = self._layout, self.layer._parameters
        if layout is None:  # another thread has restored the layer since the call began
            return type(self.layer).forward(self.layer, x)
        if torch._C._get_tracing_state() is not None:
            raise SettingError(f"faster: {self.name} cannot be traced inside the context")
        if self.layer.training:
            raise SettingError(f"faster: {self.name} is in training mode; call model.eval()")
        if torch.is_grad_enabled():
            raise SettingError("faster: gradients are enabled, and the kernels have none; use torch.inference_mode()")
        if own.get("weight") is not self._weight or own.get("bias") is not self._bias:
            raise SettingError(f"faster: {self.name} was given another weight or bias inside the context")
        rows = x.numel() // self.terms
        self.called = self.called or rows > 0
        # A kernel reads memory at an address, so the input must be a plain tensor on the CPU.
        if x.shape[-1] != self.terms:
            return type(self.layer).forward(self.layer, x)  # which raises the usual error
        if 0 < rows <= MOST_ROWS and type(x) is Tensor and x.is_cpu:
            return self._by_kernel(layout, x, rows)
        if rows > MOST_ROWS:
            _say_dense()
        return layout.dense(x, self._bias)

    def _by_kernel(self, layout: Layout, x: Tensor, rows: int) -> Tensor:
        # Streaming the weights has evicted the interpreter from the cache, so every Python call here is slow.
        given = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        out = torch.empty(*x.shape[:-1], self._shape[0])
        trying, read = self._trying, 0
        start = time.perf_counter() if trying else 0.0
        at, to = given.data_ptr(), out.data_ptr()
        for row in range(rows):
            read += layout.row(at + 4 * row * self.terms, to + 4 * row * self._shape[0])
        with _changing:
            self.read += read
            self.rows += rows
            if trying:
                self._tried((time.perf_counter() - start) / rows)
        return out if x.dtype is torch.float32 else out.to(x.dtype)

    def _tried(self, seconds: float) -> None:
        if not self._trying:
            return
        self.seconds.append(seconds)
        self._trying = len(self.seconds) < _TRIALS
        slower = self.dense_seconds is not None and statistics.median(self.seconds) > self.dense_seconds
        if slower and not self._trying:
            self.kept = self.changed is not None  # a changed layer stays, and is reported at the end
            if not self.kept:
                self.restore()
