"""Products of rows with a layer's weights."""

import torch
from torch import Tensor


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight``, (R, N) by (N, outputs). In float32 it is fastest if ``weight.T`` is contiguous.

    On a CPU this uses oneDNN's convolution of R pixels with a 1x1 kernel. On AMD processors it is 2.3 times as fast as
    torch's matrix product with MKL, which does not use their AVX-512.
    """
    if not (len(rows) and rows.device.type == "cpu" and rows.dtype == torch.float32 and _has_onednn()):
        return rows @ weight
    pixels = rows[None, :, None].permute(0, 3, 1, 2)
    return torch.mkldnn_convolution(pixels, weight.T[..., None, None], None, (0, 0), (1, 1), (1, 1), 1)[0, :, :, 0].T


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
