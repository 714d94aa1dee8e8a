"""Track where the tensors of a forward pass come from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core.calls.layers import LAYER_CALLS


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor: data or constants, after a learned layer or not, its depth in layers, its flattening."""

    data: bool = True
    learned: bool = False
    depth: int = 0
    spatial: int = 1
    kernel_dims: int = 0  # of the last layer it went through


UNKNOWN = Origin()
CONSTANT = Origin(data=False)
_NORMALISATIONS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, getattr(F, "rms_norm", None)}
_FLATTENS = {torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view}


def origin_of(func: Callable, inputs: list[Tensor], origins: list[Origin], out: Tensor, is_layer: bool) -> Origin:
    has_parameter = any(isinstance(t, nn.Parameter) for t in inputs)
    learned = any(o.learned for o in origins) or is_layer or (has_parameter and func not in _NORMALISATIONS)
    depth = max((o.depth for o in origins), default=0) + is_layer
    kernel_dims = max((o.kernel_dims for o in origins), default=0)
    spatial = 1
    if is_layer:
        kernel_dims = max(t.dim() - 2 for t in inputs[1:2]) if func in LAYER_CALLS else 0
    elif inputs and not any(x.is_nested and x.layout == torch.strided for x in (*inputs, out)):  # nested: no shape
        source = inputs[0]
        image = source.dim() == 4 or (source.dim() in (3, 5) and source.dim() == kernel_dims + 2)
        if func in _FLATTENS and image and out.shape == (source.shape[0], source.shape[1:].numel()):
            spatial = source.shape[2:].numel()
        else:
            spatial = max((o.spatial for t, o in zip(inputs, origins, strict=True) if t.shape == out.shape), default=1)
    return Origin(any(o.data for o in origins), learned, depth, spatial, max(kernel_dims, 0))
