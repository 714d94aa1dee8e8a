"""Reproduce what torch's fused kernels do with padding, in runs that cannot use these kernels.

``nn.TransformerEncoder``, its layers and ``nn.MultiheadAttention`` use fused kernels only outside of contexts that
observe torch calls, and without hooks. The results differ only at padding: the fused encoder packs its sequences and
fills up with zeros, and fused attention over a sequence of nothing but padding is NaN. Torch itself is asked whether a
call would be fused, and what the result would be.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core.calls.layers import named
from exprune.core.tracing.tracer import looked_on_by_others

_FUSED = nn.TransformerEncoder | nn.TransformerEncoderLayer | nn.MultiheadAttention
_ENCODER_ARGUMENTS = ("src", "mask", "src_key_padding_mask", "is_causal")
_LAYER_ARGUMENTS = ("src", "src_mask", "src_key_padding_mask")
_ATTENTION_ARGUMENTS = ("query", "key", "value", "key_padding_mask")


def fused_around(model: nn.Module) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """The modules that torch may run fused, for each module inside them, the outermost first."""
    around: dict[nn.Module, tuple[nn.Module, ...]] = {}
    for fused in model.modules():
        for part in fused.modules() if isinstance(fused, _FUSED) else ():
            around[part] = (*around.get(part, ()), fused)
    return around


def hooks_on(module: nn.Module) -> list[Any]:
    """Hooks that make a module return what torch's fused kernels would return. The caller removes them."""
    if isinstance(module, nn.TransformerEncoder):
        return _of_encoder(module)
    of_layer = isinstance(module, nn.TransformerEncoderLayer)
    names = _LAYER_ARGUMENTS if of_layer else _ATTENTION_ARGUMENTS
    batch_first = getattr(getattr(module, "self_attn", module), "batch_first", False)

    def attended(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        padding = named(names, args, kwargs).get(names[-1])
        if padding is None or looked_on_by_others():
            return None
        with torch._C.DisableTorchFunction():
            alone = (padding if padding.dtype == torch.bool else padding == -torch.inf).all(-1)
            if not alone.any():
                return None
            own = _without_our_hooks(module).forward(*args, **kwargs)
            alone = alone.view(-1, 1, 1) if batch_first or not alone.dim() else alone.view(1, -1, 1)
            if isinstance(out, Tensor):
                return torch.where(alone, own, out).view_as(out)
            return torch.where(alone, own[0], out[0]).view_as(out[0]), *out[1:]

    return [module.register_forward_hook(attended, with_kwargs=True)]


def _of_encoder(encoder: nn.TransformerEncoder) -> list[Any]:
    if type(encoder).forward is not nn.TransformerEncoder.forward or not len(encoder.layers):
        return []
    left: list[Tensor] = []  # for the running call: 0 at positions that are filled up

    def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
        given = named(_ENCODER_ARGUMENTS, args, kwargs)
        if given.get("src_key_padding_mask") is not None and type(given["src"]) is Tensor and not looked_on_by_others():
            left.append(_left_of_ones(encoder, **given))

    def behind_last(_: nn.Module, __: tuple, out: Tensor) -> Tensor | None:
        with torch._C.DisableTorchFunction():
            return out.masked_fill(left[-1] == 0, 0) if left else None

    def after(_: nn.Module, __: tuple, ___: Any) -> None:
        left.clear()

    return [
        encoder.register_forward_pre_hook(before, with_kwargs=True),
        encoder.layers[-1].register_forward_hook(behind_last),
        encoder.register_forward_hook(after, always_call=True),
    ]


def _left_of_ones(encoder: nn.TransformerEncoder, src: Tensor, **given: Any) -> Tensor:
    """The output, for ones in the shape of ``src``, of an encoder whose layers do nothing."""
    idle = copy.copy(encoder)
    idle.__dict__["_modules"] = {"layers": [_Idle(encoder.layers[0])], "norm": None}
    with torch._C.DisableTorchFunction():
        return nn.TransformerEncoder.forward(idle, torch.ones_like(src), **given)


class _Idle:
    """A stand-in for an encoder's layer that does nothing."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, src: Tensor, **given: Any) -> Tensor:
        return src


def _without_our_hooks(module: nn.Module) -> nn.Module:
    """A copy of the module with the same weights, and with the hooks of others only."""
    bare = copy.copy(module)
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        theirs = {key: hook for key, hook in getattr(module, kind).items() if not _is_ours(hook)}
        bare.__dict__[kind] = type(getattr(module, kind))(theirs)
    bare.__dict__["_modules"] = {
        name: None if part is None else _without_our_hooks(part) for name, part in module._modules.items()
    }
    return bare


def _is_ours(hook: Callable) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(__name__.partition(".")[0] + ".")
