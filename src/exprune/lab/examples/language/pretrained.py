"""Any language model of transformers with its published weights, and its FLOPs (docs/method.md, section 10)."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from exprune.core.accounting.flop_counter import FlopCounter
from exprune.core.errors import SettingError
from exprune.lab.data.hub import from_hub


def pretrained_lm(name: str | None, dtype: str, cache_dir: str | None = None) -> PreTrainedModel:
    """A causal or masked language model, depending on its configuration.

    Args:
        name: A name on the Hugging Face hub, a local folder, a GGUF file, or ``package:PACKAGE/PATH`` inside of an
            installed package.
        dtype: ``float32`` or ``bfloat16``.
        cache_dir: Where the contents of a GGUF file are kept; None uses the environment's cache.

    Raises:
        SettingError: If it cannot be loaded, or if it is not a language model.
    """
    stored = weight_type(dtype)
    transformers.logging.set_verbosity_error()  # no messages about weights of the model's other tasks
    transformers.logging.disable_progress_bar()
    auto = AutoModelForMaskedLM if is_masked_lm(name, cache_dir) else AutoModelForCausalLM
    return from_hub(name, "weights", auto.from_pretrained, cache_dir=cache_dir, dtype=stored)


def is_masked_lm(name: str | None, cache_dir: str | None = None) -> bool:
    """Whether a model predicts masked tokens, by its configuration; otherwise it predicts the next token.

    Raises:
        SettingError: If there is no such model, or if it is not a language model.
    """
    config = from_hub(name, "configuration", AutoConfig.from_pretrained, cache_dir=cache_dir)
    kinds = config.architectures or []
    masked = any(kind.endswith("ForMaskedLM") for kind in kinds)
    if not masked and not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise SettingError(
            f"model.pretrained={name}: a {config.model_type} ({', '.join(kinds) or 'of no architecture'}), neither a "
            "causal nor a masked language model"
        )
    return masked


def weight_type(dtype: str) -> torch.dtype:
    """The dtype of a pretrained network's weights.

    Raises:
        SettingError: If networks are not evaluated in it.
    """
    if dtype not in ("float32", "bfloat16"):
        raise SettingError(f"model.network.dtype={dtype}: must be float32 or bfloat16")
    return getattr(torch, dtype)


def is_masked(network: nn.Module) -> bool:
    """Whether a network predicts masked tokens; otherwise it predicts the next token."""
    return type(network).__name__.endswith("ForMaskedLM")


def arguments(network: nn.Module, **given: Any) -> tuple[Any, ...]:
    """The arguments of the network's forward in their order, with defaults for those in between.

    If the signature does not name all of them, they are passed in the order given here.
    """
    parameters = inspect.signature(network.forward).parameters
    if not given.keys() <= parameters.keys():
        return tuple(given.values())
    found = []
    for parameter in parameters.values():
        if not given:
            break
        found.append(given.pop(parameter.name) if parameter.name in given else parameter.default)
    return tuple(found)


@dataclass(frozen=True)
class FlopsOfLength:
    """FLOPs of all matrix products of a sequence: ``constant + linear * length + square * length^2``.

    Projections grow with the length, and attention over all pairs of positions with its square.
    """

    constant: int
    linear: int
    square: int

    def total(self, lengths: Sequence[int]) -> int:
        """FLOPs of sequences of these lengths, without padding."""
        return sum(self.constant + self.linear * length + self.square * length * length for length in lengths)


def measured_flops(network: PreTrainedModel) -> FlopsOfLength:
    """Measure the FLOPs at three lengths. This runs the network, so no context should be observing its calls.

    Raises:
        SettingError: If a fourth length does not fit the polynomial, for example because attention is windowed.
    """
    short, middle, long, check = 2, 4, 6, 8
    of = {length: _counted(network, length) for length in (short, middle, long, check)}
    square = (of[long] - 2 * of[middle] + of[short]) // (2 * 2 * 2)
    linear = (of[middle] - of[short]) // 2 - square * (short + middle)
    found = FlopsOfLength(of[short] - linear * short - square * short * short, linear, square)
    if found.total([check]) != of[check]:
        raise SettingError(f"{type(network).__name__}: its FLOPs are no polynomial of the length, so they are unknown")
    return found


def _counted(network: PreTrainedModel, length: int) -> int:
    ids = torch.zeros((1, length), dtype=torch.long, device=network.device)
    flop_counter, training = FlopCounter(), network.training
    network.eval()
    try:
        flop_counter.begin()
        with torch.no_grad():
            network(*arguments(network, input_ids=ids, attention_mask=torch.ones_like(ids)))
    finally:
        flop_counter.end()
        network.train(training)
    return flop_counter.flops
