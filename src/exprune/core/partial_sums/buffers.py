"""Reusable memory: allocating new memory takes about as long as an addition into it."""

import weakref

import torch
from torch import Tensor


class Buffers:
    """Tensors in memory that is reused once the previous tensor in it is gone. Not for tensors with gradients."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, bool, weakref.ref[Tensor]]] = []  # flat memory; inference mode; its user

    def empty_like(self, like: Tensor) -> Tensor:
        """An uninitialised dense tensor of the same shape, type and device."""
        inference = torch.is_inference_mode_enabled()  # inference tensors cannot be changed outside of inference mode
        free = [
            index
            for index, (flat, mode, user) in enumerate(self._known)
            if user() is None and (flat.dtype, flat.device, mode) == (like.dtype, like.device, inference)
        ]
        largest = max(free, key=lambda index: self._known[index][0].numel(), default=None)
        flat = like.new_empty(0) if largest is None else self._known.pop(largest)[0]
        if flat.numel() < like.numel():
            flat = like.new_empty(like.numel())
        out = flat.as_strided(like.shape, like.stride())
        self._known.append((flat, inference, weakref.ref(out)))
        return out
