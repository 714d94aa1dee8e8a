"""An OPT that reads one token at a time, without what transformers does around it."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from exprune.core.errors import SettingError


class Decoder:
    """Reads a text token by token, with keys and values of its own; the layers are called as the network's modules.

    Args:
        network: an OPT in eval mode.
    """

    def __init__(self, network: OPTForCausalLM) -> None:
        if not isinstance(network, OPTForCausalLM):
            raise SettingError(f"the decoding loop is OPT's; it does not know a {type(network).__name__}")
        config = network.config
        self.network, self.decoder = network, network.model.decoder
        self.heads, self.most = config.num_attention_heads, config.max_position_embeddings
        width = config.hidden_size // self.heads
        shape = (config.num_hidden_layers, 2, self.heads, self.most, width)
        self._kept = torch.empty(shape, dtype=self.decoder.embed_tokens.weight.dtype)
        self._scale = width**-0.5
        self.length = 0

    def reset(self) -> None:
        """Begin another text."""
        self.length = 0

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        """The logits (vocabulary,) after these tokens (length,), which follow those before.

        Raises:
            SettingError: the text is longer than the network's positions.
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
        for layer, kept in zip(decoder.layers, self._kept, strict=True):
            x = self._layer(layer, x, kept, mask)
        self.length = start + rows
        x = x[-1:]
        if decoder.final_layer_norm is not None:
            x = decoder.final_layer_norm(x)
        if decoder.project_out is not None:
            x = decoder.project_out(x)
        return self.network.lm_head(x)[0]

    def _layer(self, layer: OPTDecoderLayer, x: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
        attention, start, end = layer.self_attn, self.length, self.length + len(x)
        before = layer.do_layer_norm_before
        h = layer.self_attn_layer_norm(x) if before else x
        q, k, v = (
            projection(h).view(len(x), self.heads, -1).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        kept[0, :, start:end], kept[1, :, start:end] = k, v
        seen = F.scaled_dot_product_attention(
            q[None], kept[None, 0, :, :end], kept[None, 1, :, :end], attn_mask=mask, scale=self._scale
        )
        x = x + attention.out_proj(seen[0].transpose(0, 1).flatten(1))
        if not before:
            x = layer.self_attn_layer_norm(x)
        h = layer.final_layer_norm(x) if before else x
        x = x + layer.fc2(layer.activation_fn(layer.fc1(h)))
        return x if before else layer.final_layer_norm(x)
