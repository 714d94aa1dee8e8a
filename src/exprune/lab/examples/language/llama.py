"""A small Llama of transformers, with gated feed-forward layers."""

from transformers import LlamaConfig, LlamaForCausalLM

from exprune.lab.examples.language.opt import check_shape
from exprune.lab.examples.language.tokens import PAD, START


def small_llama(
    vocabulary: int,
    hidden: int,
    layers: int,
    heads: int,
    width: int,
    positions: int,
    activation: str,
) -> LlamaForCausalLM:
    """An untrained Llama whose head shares the embedding's weights, as in OPT.

    Args:
        vocabulary: The number of tokens.
        hidden: The width of the residual stream.
        layers: The number of layers.
        heads: The number of attention heads.
        width: The neurons of a feed-forward layer; each has a row of the gate, a row of ``up`` and a column of
            ``down``.
        positions: The largest number of tokens.
        activation: The activation of the gate, by its name in transformers.
    """
    check_shape(hidden, heads, activation)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=positions,
            hidden_act=activation,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=START,
            use_cache=False,
        )
    )
