"""Which layers feed an activation, found by watching one forward pass of the unmodified model."""

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
    """The layers of the model in the order of their first calls, each a site or with its reason not to be.

    Layers are found by their calls, whatever the class of their modules. Runs ``model(*example, **named_example)``
    once, in eval mode and without gradients; the model is left as it was. A compiled model runs as it was written.

    Raises:
        SettingError: it is no module, its calls cannot be seen (scripted, exported), or it has lazy modules that have
            not run.
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f"find_sites: a {type(model).__name__} is no torch.nn.Module")
    return sites_in(model, lambda: model(*example, **named_example))


def sites_in(model: nn.Module, call: Callable[[], Any]) -> list[Site]:
    """Likewise, of what ``call`` runs of the model."""
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
    """Why nothing can be seen of a module's calls; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted by torch.jit, its calls cannot be seen; pass the eager model"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "exported by torch.export, a graph of operators; pass the module that was exported"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "a lazy module that has not run yet has no weights; run the model once first"
    return None
