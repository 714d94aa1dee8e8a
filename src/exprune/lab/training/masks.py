"""Masks of static pruning in a network (docs/method.md, section 3)."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils import prune

from exprune.core.discovery.sites import matching
from exprune.core.errors import SettingError


def attach_masks(network: nn.Module, dense_layers: Iterable[str]) -> None:
    """Give every Linear and Conv2d a mask of ones, except the layers that ``dense_layers`` names or matches.

    The masks are those of ``torch.nn.utils.prune``: parameters ``weight_orig``, buffers ``weight_mask``.

    Raises:
        SettingError: If no layer is left to prune.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    dense = {name for pattern in dense_layers for name in matching(pattern, list(layers))}
    if not layers.keys() - dense:
        raise SettingError(f"static.dense_layers={list(dense_layers)}: leaves no layer to prune")
    for name, module in layers.items():
        if name not in dense:
            module.weight.data = module.weight.data.contiguous()  # torch's global pruning cannot flatten channels_last
            prune.identity(module, "weight")


def masked_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that have a mask, by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "weight_mask")}


def refresh_weights(network: nn.Module) -> None:
    """Apply the masks. A layer's ``weight`` is otherwise only recomputed when the layer runs."""
    for module in masked_layers(network).values():
        module.weight = module.weight_orig * module.weight_mask


def weights_left(network: nn.Module) -> dict[str, tuple[int, int]]:
    """For every layer with a mask, the number of remaining weights and of all weights."""
    return {
        name: (int(module.weight_mask.count_nonzero()), module.weight_mask.numel())
        for name, module in masked_layers(network).items()
    }


def sparsity(network: nn.Module) -> float:
    """The share of weights removed in masked layers; 0 without masks."""
    counts = weights_left(network).values()
    return 1 - sum(left for left, _ in counts) / sum(total for _, total in counts) if counts else 0.0
