"""What the tables of networks say of each."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that nobody here wrote.

    Attributes:
        build: makes the model and the arguments of a call, without a seed of its own.
        eligible: how many of its layers are sites, read from its architecture.
        residual: how many of those have something added to them that is not one number per channel.
        flattened: the sites that read a flattened feature map, with its positions.
        uncounted: the operators that have no formula, with how often a pass calls them.
        fast: whether the gate includes it.
    """

    build: Callable[[], tuple[nn.Module, tuple, dict[str, Any]]]
    eligible: int
    residual: int = 0
    flattened: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    fast: bool = False


@contextmanager
def uninitialised() -> Iterator[None]:
    """Layers are made without values, which take long to draw and are drawn anew."""
    names = "normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ orthogonal_"
    with ExitStack() as stack:
        for name in names.split():
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *args, **kwargs: tensor))
        yield


def scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode and float64, with nothing left at a value that would hide a mistake.

    Biases are not 0, normalisations neither 1 nor 0 and of both signs; activations keep their size through ReLUs.
    """
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                bound = math.sqrt(6 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.2, generator=generator)
            else:
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                parameter.uniform_(0.3, 1.0, generator=generator).mul_(signs)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model
