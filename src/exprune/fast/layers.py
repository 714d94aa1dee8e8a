"""The layers that have a kernel: before a ReLU, behind it, and the prediction head."""

import threading

import torch
from torch import Tensor, nn

from exprune.core.errors import SettingError
from exprune.fast.layer import FastLayer
from exprune.fast.layouts import Blocks, Layout, Turned
from exprune.fast.methods import replace_methods, restore_methods
from exprune.fast.stages import Stages


class Up(FastLayer):
    """A layer before a ReLU: its neurons stop stage by stage.

    Its output is what the ReLU makes of it, which another ReLU leaves as it is.

    Attributes:
        first: of each thread that has called it the last output by the kernel, until :class:`Down` has seen what
            becomes of one; ``checked`` then.
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
    """A layer behind a ReLU: the weights of inputs that are exactly zero are not read.

    Args:
        before: the layer before that ReLU, if it is replaced too.
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
            # The layer before it in this thread; what other threads compute meanwhile is of other rows.
            first = before.first.pop(threading.get_ident(), None)
            if first is not None:
                self._check_relu(x, before.name, first)
                before.checked = True
                before.first.clear()
        return super()._forward(x)

    def _check_relu(self, x: Tensor, name: str, before: Tensor) -> None:
        """The layer before has applied the ReLU already: nothing but that, or its square, may lie between the two."""
        if x.numel() != before.numel() or not any(torch.equal(x.flatten(), of.flatten()) for of in (before, before**2)):
            raise SettingError(
                f"faster: what {self.name} reads is not the ReLU of {name}, nor its square; "
                "choose other sites with select_sites"
            )
