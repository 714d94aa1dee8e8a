"""The layers that have a kernel: before a ReLU, after a ReLU, and the prediction head."""

import threading

import torch
from torch import Tensor, nn

from exprune.core.errors import SettingError
from exprune.fast.layer import FastLayer
from exprune.fast.layouts import Blocks, Layout, Turned
from exprune.fast.methods import replace_methods, restore_methods
from exprune.fast.stages import Stages


class Up(FastLayer):
    """A layer before a ReLU, whose neurons stop stage by stage.

    Its output has passed the ReLU already; applying the ReLU again changes nothing.

    Attributes:
        first: The last output of the kernel by thread, until a `Down` layer has checked what becomes of one.
        checked: Whether that was checked.
    """

    def __init__(self, name: str, layer: nn.Linear, stages: Stages, dense_seconds: float | None = None) -> None:
        self._stages = stages
        self.first: dict[int, Tensor] = {}
        self.checked = False
        super().__init__(name, layer, dense_seconds)

    def restore(self) -> None:
        super().restore()
        self.first.clear()

    def _lay_out(self, weight: Tensor) -> Blocks:
        return Blocks(weight, self.bias, self._stages)

    def _by_kernel(self, layout: Layout, x: Tensor, rows: int) -> Tensor:
        out = super()._by_kernel(layout, x, rows)
        if not self.checked:
            self.first[threading.get_ident()] = out
        return out


class Head(FastLayer):
    """A prediction head of which only the largest output is needed; the others are dropped stage by stage, to -inf.

    With several threads, each thread drops logits that are smaller than another one in its own part.

    Args:
        name: The name of the layer.
        layer: The layer.
        stages: The stages and bounds.
        embedding: An embedding that shares the weight, which is then served from the same blocks.
        dense_seconds: See `FastLayer`.
    """

    def __init__(
        self,
        name: str,
        layer: nn.Linear,
        stages: Stages,
        embedding: nn.Embedding | None,
        dense_seconds: float | None = None,
    ) -> None:
        self._embedding, self._stages = embedding, stages
        super().__init__(name, layer, dense_seconds)
        if embedding is not None:
            replace_methods(embedding, forward=self._look_up)

    def restore(self) -> None:
        super().restore()
        if self._embedding is not None:
            restore_methods(self._embedding, "forward")

    def _lay_out(self, weight: Tensor) -> Blocks:
        return Blocks(weight, self.bias, self._stages)

    def _look_up(self, ids: Tensor) -> Tensor:
        if isinstance(layout := self._layout, Blocks):
            return layout.looked_up(ids)
        assert self._embedding is not None
        return type(self._embedding).forward(self._embedding, ids)


class Down(FastLayer):
    """A layer after a ReLU, which does not read the weights of inputs that are exactly zero.

    Args:
        name: The name of the layer.
        layer: The layer.
        dense_seconds: See `FastLayer`.
        before: The layer before that ReLU, if it is replaced too.
    """

    def __init__(
        self, name: str, layer: nn.Linear, dense_seconds: float | None = None, before: Up | None = None
    ) -> None:
        self._before = before
        super().__init__(name, layer, dense_seconds)

    def _lay_out(self, weight: Tensor) -> Turned:
        return Turned(weight, self.bias)

    def _forward(self, x: Tensor) -> Tensor:
        before = self._before
        if before is not None and not before.checked:
            # The preceding layer in this thread; other threads compute other rows meanwhile.
            first = before.first.pop(threading.get_ident(), None)
            if first is not None:
                self._check_relu(x, before.name, first)
                before.checked = True
                before.first.clear()
        return super()._forward(x)

    def _check_relu(self, x: Tensor, name: str, before: Tensor) -> None:
        """Check that only the ReLU (or its square), which is already applied, is between the two layers."""
        if x.numel() != before.numel() or not any(torch.equal(x.flatten(), of.flatten()) for of in (before, before**2)):
            raise SettingError(
                f"faster: the input of {self.name} is not the ReLU of {name}, nor its square; "
                "choose other sites with select_sites"
            )
