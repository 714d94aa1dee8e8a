"""A released network, and how far pruning moves its predictions: for the scripts beside this file."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported

import torch  # isort: skip
from torch import Tensor  # isort: skip
from torch.nn import functional as F  # isort: skip

from exprune.core import ExPrune, Recorder
from exprune.lab.configured import heuristic_of
from exprune.lab.evaluation.subject import Subject, prepare
from exprune.lab.examples.language.tokens import NO_TARGET


def subject_of(*overrides: str) -> Subject:
    """What ``python evaluate.py OVERRIDE...`` measures."""
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*overrides, "logger=none", "overrides=[]", "paths.output_dir=."])
    return prepare(cfg, heuristic_of(cfg))


@torch.inference_mode()
def log_probabilities(subject: Subject, batches: Iterable[Any], *runs: ExPrune | Recorder) -> Tensor:
    """(inputs, classes) of the network's predictions, inside these contexts."""
    task, found = subject.task, []
    for batch in batches:
        if hasattr(task, "data_rows"):
            for run in runs:
                run.rows = task.data_rows(batch)
        out = task.network(*task.network_inputs(batch))
        logits = out.logits[batch.targets != NO_TARGET] if hasattr(out, "logits") else out
        binary = logits.shape[1] == 1
        of = F.logsigmoid(torch.cat([logits, -logits], 1)) if binary else logits.log_softmax(1)
        found.append(of.double())
    return torch.cat(found)


def first_batches(loader: Iterable[Any], subject: Subject, inputs: int) -> tuple[list[Any], Tensor]:
    """So many batches that they have as many inputs, and what the dense network predicts of them."""
    batches, dense = [], torch.empty(0)
    for batch in loader:
        batches.append(batch)
        more = log_probabilities(subject, [batch])
        dense = torch.cat([dense, more]) if len(dense) else more
        if len(dense) >= inputs:
            break
    return batches, dense


def divergence(dense: Tensor, pruned: Tensor) -> float:
    """The mean KL divergence, in nats, of two networks' (inputs, classes) log probabilities."""
    return float((dense.exp() * (dense - pruned)).sum(1).mean())


def at_levels(points: Sequence[tuple[float, float]], levels: Sequence[float]) -> dict[str, float]:
    """Of (percent saved, nats) the saving at each level between the points' own, interpolated over its logarithm."""
    saved, apart = np.array(sorted(points, key=lambda point: point[1])).T
    apart = np.maximum(apart, 1e-9)
    return {
        f"saved_percent_at_{level}": float(np.interp(math.log(level), np.log(apart), saved))
        for level in levels
        if apart[0] <= level <= apart[-1]
    }
