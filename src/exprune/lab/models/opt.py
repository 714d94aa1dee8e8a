"""OPT as transformers ships it: building one, and what it costs (docs/method.md, section 5)."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from exprune.core.errors import SettingError
from exprune.lab.data.tokens import PAD, START


def small_opt(vocabulary: int, hidden: int, layers: int, heads: int, positions: int, dropout: float) -> OPTForCausalLM:
    """An untrained OPT with a feed-forward layer four times as wide as its hidden size."""
    if hidden % heads:
        raise SettingError(f"model.network.hidden={hidden}: not divisible by heads={heads}")
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            word_embed_proj_dim=hidden,
            ffn_dim=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=positions,
            dropout=dropout,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=START,
            use_cache=False,
        )
    )


def opt_flops(config: OPTConfig, lengths: Sequence[int]) -> int:
    """FLOPs of all matrix products for sequences of these lengths, without padding.

    The projections, attention over all pairs of positions as a dense kernel computes it, fc1, fc2, the projections in
    and out where there are any, and the language head.
    """
    hidden, width = config.hidden_size, config.word_embed_proj_dim
    per_token = config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * config.ffn_dim)
    per_token += width * config.vocab_size + (2 * width * hidden if width != hidden else 0)
    per_pair = config.num_hidden_layers * 2 * hidden
    return sum(2 * (length * per_token + length * length * per_pair) for length in lengths)


def fc1_flops(config: OPTConfig, lengths: Sequence[int]) -> int:
    """The share of :func:`opt_flops` that is fc1."""
    return 2 * config.hidden_size * config.ffn_dim * config.num_hidden_layers * sum(lengths)


@contextlib.contextmanager
def zeros_of_fc2(network: nn.Module, rows: Tensor) -> Iterator[list[Tensor]]:
    """Counts, layer by layer, the zeros that fc2 reads in the given rows (bool, over all tokens of the batch).

    The products with them could be left out, exactly: 2 FLOPs for each zero and output.
    """
    counts: list[Tensor] = []
    rows = rows.reshape(-1, 1)

    def count(layer: nn.Module, args: tuple[Tensor]) -> None:
        zeros = (args[0].detach().reshape(-1, layer.in_features) == 0) & rows.to(args[0].device)
        counts.append(torch.count_nonzero(zeros) * (2 * layer.out_features))

    layers = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "fc2"]
    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
