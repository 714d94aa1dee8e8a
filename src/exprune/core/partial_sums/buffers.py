"""Memory that is used again: to be given fresh memory takes about as long as an addition into it."""

import weakref

import torch
from torch import Tensor


class Buffers:
    """Tensors in memory that is used again once the tensor that lies in it is gone. For no gradients."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, bool, weakref.ref[Tensor]]] = []  # flat; of inference mode; what lies in it

    def empty_like(self, like: Tensor) -> Tensor:
        """A dense tensor like this one, filled with anything."""
        inference = torch.is_inference_mode_enabled()  # what is made in it cannot be changed outside of it
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
