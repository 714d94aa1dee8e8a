"""A decoding loop for OPT that reads one token at a time, without the overhead of transformers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer

from exprune.core.errors import SettingError


class Decoder:
    """Read a text token by token with its own key-value cache. The layers are called as the network's modules.

    The weights of each layer's q, k and v are moved into one matrix. The network's own weights are parts of it
    afterwards.

    Args:
        network: An OPT in eval mode.
        empty: Allocates these matrices, given a shape and a dtype.

    Attributes:
        fused: A single layer for q, k and v of each decoder layer.
    """

    def __init__(self, network: OPTForCausalLM, empty: Callable[..., Tensor] = torch.empty) -> None:
        if not isinstance(network, OPTForCausalLM):
            raise SettingError(f"the decoding loop is OPT's; it does not know a {type(network).__name__}")
        config = network.config
        self.network, self.decoder = network, network.model.decoder
        self.heads, self.most = config.num_attention_heads, config.max_position_embeddings
        width = config.hidden_size // self.heads
        shape = (config.num_hidden_layers, 2, self.heads, self.most, width)
        self._kept = torch.empty(shape, dtype=self.decoder.embed_tokens.weight.dtype)
        self._scale = width**-0.5
        self.fused = [_fused(layer.self_attn, empty) for layer in self.decoder.layers]
        self.length = 0

    def reset(self) -> None:
        """Begin another text."""
        self.length = 0

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """The logits (vocabulary,) after some tokens (length,) that continue the text.

        Raises:
            SettingError: If the text is longer than the network's number of positions.
        """
        rows, start = len(ids), self.length
        if start + rows > self.most:
            raise SettingError(f"a sequence of {start + rows} tokens; the model has {self.most} positions")
        decoder = self.decoder
        x = decoder.embed_tokens(ids)
        if decoder.project_in is not None:
            x = decoder.project_in(x)
        at = decoder.embed_positions.offset + start
        x = x + decoder.embed_positions.weight[at : at + rows]
        mask = None if rows == 1 else torch.ones(rows, start + rows, dtype=torch.bool).tril(start)
        for layer, fused, kept in zip(decoder.layers, self.fused, self._kept, strict=True):
            x = self._layer(layer, fused, x, kept, mask)
        self.length = start + rows
        x = x[-1:]
        if decoder.final_layer_norm is not None:
            x = decoder.final_layer_norm(x)
        if decoder.project_out is not None:
            x = decoder.project_out(x)
        return self.network.lm_head(x)[0]

    def _layer(self, layer: OPTDecoderLayer, fused: nn.Linear, x: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
        start, end = self.length, self.length + len(x)
        before = layer.do_layer_norm_before
        h = layer.self_attn_layer_norm(x) if before else x
        qkv = fused(h).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        kept[:, :, start:end] = qkv[1:]
        seen = F.scaled_dot_product_attention(qkv[:1], kept[:1, :, :end], kept[1:, :, :end], mask, scale=self._scale)
        x = x + layer.self_attn.out_proj(seen[0].transpose(0, 1).reshape(len(x), -1))
        if not before:
            x = layer.self_attn_layer_norm(x)
        h = layer.final_layer_norm(x) if before else x
        x = x + layer.fc2(layer.activation_fn(layer.fc1(h)))
        return x if before else layer.final_layer_norm(x)


@torch.inference_mode(False)
@torch.no_grad()
def _fused(attention: OPTAttention, empty: Callable[..., Tensor]) -> nn.Linear:
    """A layer that computes q, k and v together; the weights of the three layers become parts of its weight."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = parts[0].weight, parts[0].bias
    fused = nn.Linear(weight.shape[1], 3 * len(weight), bias is not None, device="meta", dtype=weight.dtype)
    for name in ("weight",) if bias is None else ("weight", "bias"):
        given = [getattr(part, name) for part in parts]
        whole = torch.cat(given, out=empty((3 * len(given[0]), *given[0].shape[1:]), dtype=weight.dtype))
        for one, rows in zip(given, whole.chunk(3), strict=True):
            one.data = rows
        setattr(fused, name, nn.Parameter(whole, requires_grad=False))
    return fused.eval()
