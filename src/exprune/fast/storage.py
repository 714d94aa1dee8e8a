"""The memory of weights that the kernels read."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exprune.core.errors import SettingError

_NUMBERS = {torch.float32: np.float32, torch.float16: np.uint16, torch.bfloat16: np.int16}  # types in the kernels


def check_weight(tensor: Tensor, name: str) -> None:
    """Raise a SettingError if there is no kernel for a weight; ``name`` is its layer's."""
    if type(tensor) is not nn.Parameter:
        raise SettingError(f"faster: the weight of {name} is a {type(tensor).__name__}, not a plain Parameter")
    dtype, served = _short(tensor.dtype), ", ".join(map(_short, _NUMBERS))
    if tensor.device.type != "cpu":
        raise SettingError(f"faster: {name} is on {tensor.device}; the kernels run on a CPU only")
    if tensor.dtype not in _NUMBERS:
        raise SettingError(f"faster: {name} is {dtype}; there are kernels for {served}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def numbers(tensor: Tensor) -> NDArray:
    """A tensor's memory in the type that the kernels read."""
    tensor, known_as = tensor.detach(), _NUMBERS[tensor.dtype]
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.int16).numpy().view(known_as)


def room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor in memory of numpy, which requests huge pages; a core reads them a tenth faster."""
    if dtype == torch.float32:
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.from_numpy(np.empty(shape, np.int16)).view(dtype)
