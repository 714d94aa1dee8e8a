"""Any language model of transformers with its published weights, and what it costs (docs/method.md, section 10)."""

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
    """A causal or masked language model, as its configuration says which.

    Args:
        name: on the Hugging Face hub, a local folder, a GGUF file, or ``package:PACKAGE/PATH`` of an installed package.
        dtype: ``float32`` or ``bfloat16``.
        cache_dir: where what a GGUF file holds is kept; None: where the environment says.

    Raises:
        SettingError: there is nothing of that name to be had, or it is no language model.
    """
    stored = weight_type(dtype)
    transformers.logging.set_verbosity_error()  # of weights that another task of the model has
    transformers.logging.disable_progress_bar()
    auto = AutoModelForMaskedLM if is_masked_lm(name, cache_dir) else AutoModelForCausalLM
    return from_hub(name, "weights", auto.from_pretrained, cache_dir=cache_dir, dtype=stored)


def is_masked_lm(name: str | None, cache_dir: str | None = None) -> bool:
    """Whether a model predicts masked tokens, by its configuration; else the next one.

    Raises:
        SettingError: there is no such model, or it is no language model.
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
    """What a pretrained network's weights are stored as.

    Raises:
        SettingError: networks are not evaluated in it.
    """
    if dtype not in ("float32", "bfloat16"):
        raise SettingError(f"model.network.dtype={dtype}: float32 or bfloat16")
    return getattr(torch, dtype)


def is_masked(network: nn.Module) -> bool:
    """Whether it predicts masked tokens; else the next one."""
    return type(network).__name__.endswith("ForMaskedLM")


def arguments(network: nn.Module, **given: Any) -> tuple[Any, ...]:
    """The arguments of the network's forward by their places; what stands between them has its default.

    Where it does not name them all, they are as they stand here.
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
    """FLOPs of all matrix products of a sequence by its length, ``constant + linear * length + square * length^2``.

    Projections, and attention over all pairs of positions, grow with nothing but the length and its square.
    """

    constant: int
    linear: int
    square: int

    def total(self, lengths: Sequence[int]) -> int:
        """Of sequences of these lengths, without padding."""
        return sum(self.constant + self.linear * length + self.square * length * length for length in lengths)


def measured_flops(network: PreTrainedModel) -> FlopsOfLength:
    """Counted at three lengths. It runs the network, so what watches its calls must not watch these.

    Raises:
        SettingError: a fourth length does not lie on the polynomial, as where attention looks at a window.
    """
    short, middle, long, check = 2, 4, 6, 8
    of = {length: _counted(network, length) for length in (short, middle, long, check)}
    square = (of[long] - 2 * of[middle] + of[short]) // (2 * 2 * 2)
    linear = (of[middle] - of[short]) // 2 - square * (short + middle)
    found = FlopsOfLength(of[short] - linear * short - square * short * short, linear, square)
    if found.total([check]) != of[check]:
        raise SettingError(f"{type(network).__name__}: its FLOPs are no polynomial of the length, so not known")
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
