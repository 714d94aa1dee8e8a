"""OPT of transformers: construction, and FLOPs (docs/method.md, section 5)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedConfig
from transformers.activations import ACT2FN

from exprune.core.errors import SettingError
from exprune.lab.data.hub import from_hub
from exprune.lab.examples.language.pretrained import weight_type
from exprune.lab.examples.language.tokens import PAD, START


def small_opt(
    vocabulary: int,
    hidden: int,
    layers: int,
    heads: int,
    positions: int,
    dropout: float,
    activation: str | None = None,
) -> OPTForCausalLM:
    """An untrained OPT whose feed-forward layers are four times as wide as its hidden size.

    Args:
        vocabulary: The number of tokens.
        hidden: The hidden size.
        layers: The number of layers.
        heads: The number of attention heads.
        positions: The largest number of tokens.
        dropout: The dropout probability.
        activation: The activation, by its name in transformers; None means OPT's own, ReLU.
    """
    check_shape(hidden, heads, activation)
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
            activation_function=activation or "relu",
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=START,
            use_cache=False,
        )
    )


def check_shape(hidden: int, heads: int, activation: str | None) -> None:
    """Check that a transformer can be built with these sizes.

    Raises:
        SettingError: If it cannot.
    """
    if hidden % heads:
        raise SettingError(f"model.network.hidden={hidden}: not divisible by heads={heads}")
    if activation is not None and activation not in ACT2FN:
        raise SettingError(f"model.network.activation={activation}: one of transformers', {', '.join(sorted(ACT2FN))}")


def pretrained_opt(name: str, dtype: str) -> OPTForCausalLM:
    """A pretrained OPT from the Hugging Face hub, its cache, or a local folder.

    Args:
        name: ``facebook/opt-1.3b``, ``facebook/opt-125m``, ... or a path.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        SettingError: If it cannot be loaded, if it is not an OPT, or if its activation is not ReLU.
    """
    stored = weight_type(dtype)
    config = from_hub(name, "configuration", AutoConfig.from_pretrained)
    activation = next((value for key in _ACTIVATIONS if (value := getattr(config, key, None))), None)
    if activation != "relu":
        raise SettingError(f"model.pretrained={name}: its activation is {activation}, and ExPrune needs a ReLU")
    if config.model_type != "opt":
        raise SettingError(f"model.pretrained={name}: a {config.model_type}, not an OPT")
    return from_hub(name, "weights", OPTForCausalLM.from_pretrained, dtype=stored)


_ACTIVATIONS = ("activation_function", "hidden_act", "activation", "hidden_activation", "feed_forward_proj")


def pretrained_encoding(name: str) -> Callable[[list[str]], list[Tensor]]:
    """A function that converts texts to token ids of that OPT, without a start token.

    Raises:
        SettingError: If there is no tokenizer of that name, or if it does not fit an OPT.
    """
    tokenizer = from_hub(name, "tokenizer", AutoTokenizer.from_pretrained)
    if tokenizer.convert_tokens_to_ids("</s>") != START or tokenizer.convert_tokens_to_ids("<pad>") != PAD:
        raise SettingError(f"model.pretrained={name}: its tokenizer has other numbers for </s> and <pad> than OPT")

    def encode(texts: list[str]) -> list[Tensor]:
        return [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return encode


def check_tokens(config: PreTrainedConfig, input_ids: Tensor) -> None:
    """Check that a language model can read these sequences (batch, length).

    Raises:
        SettingError: If the sequences exceed the network's positions, or contain tokens that it does not know.
    """
    length = input_ids.shape[1]
    positions = getattr(config, "max_position_embeddings", None) or length
    if length > positions:
        raise SettingError(f"a sequence of {length} tokens; the model has {positions} positions")
    if input_ids.max() >= config.vocab_size:
        raise SettingError(
            f"token {int(input_ids.max())}, but the model knows {config.vocab_size}: the tokenizer is another model's"
        )


def opt_flops(config: OPTConfig, lengths: Sequence[int]) -> int:
    """FLOPs of all matrix products for sequences of these lengths, without padding.

    They include the projections, attention over all pairs of positions as a dense kernel computes it, fc1, fc2, the
    input and output projections if there are any, and the language head.
    """
    hidden, width = config.hidden_size, config.word_embed_proj_dim or config.hidden_size
    per_token = config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * config.ffn_dim)
    per_token += width * config.vocab_size + (2 * width * hidden if width != hidden else 0)
    per_pair = config.num_hidden_layers * 2 * hidden
    return sum(2 * (length * per_token + length * length * per_pair) for length in lengths)


def fc1_flops(config: OPTConfig, lengths: Sequence[int]) -> int:
    """The part of `opt_flops` that belongs to fc1."""
    return 2 * config.hidden_size * config.ffn_dim * config.num_hidden_layers * sum(lengths)


@contextlib.contextmanager
def zeros_of_fc2(network: nn.Module, rows: Tensor) -> Iterator[list[Tensor]]:
    """Count, layer by layer, the FLOPs of fc2's products with exact zeros in the given rows (bool, over all tokens).

    These products could be skipped without changing the result: 2 FLOPs per zero and output.
    """
    counts: list[Tensor] = []
    rows = rows.reshape(-1, 1)

    def count(layer: Any, args: tuple[Tensor]) -> None:
        zeros = (args[0].detach().reshape(-1, layer.in_features) == 0) & rows.to(args[0].device)
        counts.append(torch.count_nonzero(zeros) * (2 * layer.out_features))

    layers = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "fc2"]
    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
