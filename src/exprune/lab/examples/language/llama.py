"""A small Llama as transformers builds it: feed-forward layers with a gate."""

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
    """An untrained Llama whose head is its embedding, as that of OPT.

    Args:
        width: neurons of a feed-forward layer, each with a row of the gate, one of ``up`` and a column of ``down``.
        activation: of the gate, by transformers' name of it.
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
