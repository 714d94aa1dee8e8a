"""Find the layers that feed an activation, by watching one forward pass of the unmodified model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from exprune.core.discovery.sites import Site
from exprune.core.discovery.watcher import Watcher
from exprune.core.discovery.writes import Writes
from exprune.core.errors import SettingError
from exprune.core.tracing.padding import fused_around
from exprune.core.tracing.tracer import Tracer


def find_sites(model: nn.Module, *example: Any, **named_example: Any) -> list[Site]:
    """Find the layers of a model, in the order of their first calls, and determine which of them can be pruned.

    The model runs once, as ``model(*example, **named_example)``, in eval mode and without gradients; afterwards its
    mode is restored. Layers are found by their torch calls, whatever the class of their modules. A model that was
    compiled by ``torch.compile`` runs uncompiled.

    Args:
        model: Any module, except scripted and exported ones.
        *example: Positional arguments of the model: one batch of inputs.
        **named_example: Keyword arguments of the model.

    Returns:
        All layers; those that cannot be pruned have a `Site.reason`.

    Raises:
        SettingError: If ``model`` is not a module, if its calls cannot be observed (scripted or exported models), or if
            it has lazy modules that have not run yet.

    Example:
        ```python
        sites = find_sites(model, torch.randn(8, 3, 32, 32))
        for site in sites:
            print(site.name, site.terms, site.reason or "can be pruned")
        ```
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f"find_sites: {type(model).__name__} is not a torch.nn.Module")
    return sites_in(model, lambda: model(*example, **named_example))


def sites_in(model: nn.Module, call: Callable[[], Any]) -> list[Site]:
    """Like `find_sites`, where ``call`` runs the model."""
    for name, module in model.named_modules():
        if why := _opaque(module):
            raise SettingError(f"{name or type(module).__name__}: {why}")
    training = {module: module.training for module in model.modules()}
    writes = Writes()
    watcher = Watcher(model, writes.of)
    model.eval()
    try:
        with torch.no_grad(), writes, Tracer(watcher):
            out = call()
            watcher.use(out, "the model's output")
            watcher.use_what_is_kept()
            fused = fused_around(model)
            sites = watcher.sites()
            return [replace(site, layer=replace(site.layer, fused=fused.get(site.module, ()))) for site in sites]
    finally:
        for module, mode in training.items():
            module.training = mode


def _opaque(module: nn.Module) -> str | None:
    """The reason why a module's calls cannot be observed; None if they can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted by torch.jit, its calls cannot be seen; pass the eager model"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "exported by torch.export, which leaves a graph of operators; pass the module that was exported"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "a lazy module that has not run yet has no weights; run the model once first"
    return None
