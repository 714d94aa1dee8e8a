"""The description of a network in the tables of the conformance tests."""

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
    """A third-party network.

    Attributes:
        build: Makes the model and the arguments of a call, without setting a seed.
        eligible: The number of layers that are sites, determined from its architecture.
        residual: How many of those have something added to them other than one number per channel.
        flattened: The sites that read a flattened feature map, with its positions.
        uncounted: The operators without a formula, and how often a pass calls them.
        fast: Whether the gate includes it.
    """

    build: Callable[[], tuple[nn.Module, tuple, dict[str, Any]]]
    eligible: int
    residual: int = 0
    flattened: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    fast: bool = False


@contextmanager
def uninitialised() -> Iterator[None]:
    """Create layers without values, as values are slow to draw and are drawn again later."""
    names = "normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_ orthogonal_"
    with ExitStack() as stack:
        for name in names.split():
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *args, **kwargs: tensor))
        yield


def scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode and float64, without default values that would hide a mistake.

    Biases are not 0; normalisations are neither 0 nor 1, and have both signs; activations keep their size through
    ReLUs.
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
