"""Experiments, assembled from the other modules: `train` and `evaluate`."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from exprune.files import write_whole
from exprune.lab.configured import heuristic_of, knob_to_find
from exprune.lab.decoding.engine import decoded, engine
from exprune.lab.evaluation.head import dominance
from exprune.lab.evaluation.measure import measure
from exprune.lab.evaluation.report import log_result, print_next, print_result
from exprune.lab.evaluation.result import Result
from exprune.lab.evaluation.subject import load_data, plain, prepare
from exprune.lab.selection.tuning import check_tuning, tuned
from exprune.lab.tracking import sweep_name, tracked
from exprune.lab.training.fit import make_trainer
from exprune.lab.training.trained import train_weights

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> Path:
    """Train the configured network and save its weights; returns the file."""
    make_trainer(cfg)  # a missing device is reported before the data is read
    return train_weights(cfg, load_data(cfg))


def evaluate(cfg: DictConfig) -> Result:
    """Evaluate the configured network densely and with ExPrune; writes, prints and returns the result."""
    check_tuning(cfg)
    subject = prepare(cfg, heuristic_of(cfg), ["valid"] if knob_to_find(cfg) else [])
    heuristic, target = tuned(subject)
    head = dominance(cfg, subject.trainer, subject.task, subject.data)
    fast = engine(subject, heuristic, head)
    folder = Path(cfg.paths.output_dir)
    command = shlex.join(["python", "evaluate.py", *cfg.overrides])
    with tracked(cfg, "evaluate") as tracker:
        result, examples = measure(subject, heuristic, plain(cfg.exprune.gain_ratio), cfg.split, command, target, head)
        if fast is not None:
            result = replace(result, engine=decoded(subject, fast, examples))
        write_whole(folder / "examples.parquet", examples.to_parquet)
        result.write(folder / "result.json")
        log_result(tracker, result, folder)
    print_result(result)
    if sweep_name() is None:
        print_next(result)
    log.info("results: %s", folder)
    return result
