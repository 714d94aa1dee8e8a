"""Measure a language model with the kernels of `exprune.fast`, decoding token by token."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from exprune.core import Dominance, Heuristic
from exprune.lab.decoding.loop import Decoder
from exprune.lab.evaluation.measure import compare
from exprune.lab.evaluation.passes import Pass
from exprune.lab.evaluation.subject import Subject
from exprune.lab.examples.language.task import NextTokenTask
from exprune.lab.examples.language.tokens import NO_TARGET, TokenBatch

if TYPE_CHECKING:  # numba is optional
    from exprune.fast import faster


def engine(subject: Subject, heuristic: Heuristic | None, head: Dominance | None) -> "faster | None":
    """The context that runs the task's network with the kernels; None with ``engine=simulated``.

    Raises:
        SettingError: If there is no kernel for the layers or the heuristic.
    """
    if subject.cfg.engine.tokens is None:
        return None
    from exprune.fast import faster

    return faster(subject.task.network, subject.sites, heuristic, head, switch=False)


def decoded(subject: Subject, fast: "faster", examples: pd.DataFrame) -> dict[str, Any]:
    """Decode the first tokens of the split, densely and with the kernels.

    Args:
        subject: The trained network with its data.
        fast: The context from `engine`.
        examples: The target, ``dense`` and ``pruned`` prediction of every token from the earlier passes, and its text.

    Returns:
        The metric of both, its drop in points with a 95 % interval; ``agreement``, the share of predictions that equal
            those of the simulation; tokens per second; and for each layer the share of its weights that was read.
    """
    cfg, task = subject.cfg, subject.task
    assert isinstance(task, NextTokenTask)
    network, tokens = task.network.cpu().eval(), cfg.engine.tokens
    texts = texts_of(subject.loader(cfg.split))
    decoder = Decoder(network)
    found = {}
    for side, context in (("dense", contextlib.nullcontext()), ("pruned", fast)):
        with context, tqdm(total=tokens, desc=f"decoding, {side}", unit=" tokens", disable=None, leave=False) as bar:
            start = time.perf_counter()
            predicted = np.array(list(predictions(decoder, texts, tokens, bar)))
            seconds = time.perf_counter() - start
        of = examples[: len(predicted)]
        columns = {"prediction": predicted, "target": of["target"].to_numpy(), "group": of["group"].to_numpy()}
        found[side] = Pass(columns, seconds)
    metric = compare(task, found["dense"], found["pruned"], cfg.bootstrap, cfg.seed)
    count = len(found["dense"].targets)
    return {
        "tokens": count,
        "threads": torch.get_num_threads(),
        "dense": metric.dense,
        "pruned": metric.pruned,
        "drop": metric.drop,
        "interval": metric.interval,
        "agreement": float((found["pruned"].predictions == examples["pruned"][:count].to_numpy()).mean()),
        "tokens_per_second": {side: count / one.seconds for side, one in found.items()},
        "layers": [{"name": layer.name, "read": layer.density} for layer in fast.layers],
    }


def texts_of(batches: Iterable[TokenBatch]) -> list[tuple[Tensor, Tensor]]:
    """The tokens of each text in the batches without padding (length,), and the next token of each."""
    rows = [row for batch in batches for row in zip(batch.input_ids, batch.attention_mask, batch.targets, strict=True)]
    return [(ids[: int(mask.sum())], targets[: int(mask.sum())]) for ids, mask, targets in rows]


def predictions(decoder: Decoder, texts: list[tuple[Tensor, Tensor]], tokens: int, bar: tqdm) -> Iterator[int]:
    """Yield the most probable next token after each of the first ``tokens`` tokens that have a target."""
    left = tokens
    for ids, targets in texts:
        decoder.reset()
        for at in range(len(ids)):
            if not left:
                return
            logits = decoder(ids[at : at + 1])
            if targets[at] != NO_TARGET:
                left -= 1
                bar.update()
                yield int(logits.argmax())
