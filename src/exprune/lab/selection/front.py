"""The front of a search: its settings measured on validation and test, and promised on inputs that it never saw."""

import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from tqdm import tqdm

from exprune.core import ExPrune, Heuristic
from exprune.core.errors import SettingError
from exprune.lab.evaluation.measure import about, measure, pass_and_saved
from exprune.lab.evaluation.passes import run_pass
from exprune.lab.evaluation.result import read_result
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.files import write_whole
from exprune.lab.fingerprint import fingerprint
from exprune.lab.fronts.pareto import row
from exprune.lab.selection.knobs import Maker
from exprune.lab.selection.promise import drop_test
from exprune.lab.selection.sequence import how_many_pass, out_of_reach
from exprune.lab.selection.study import finished, front, spread
from exprune.lab.tasks.paired_tests import PairedTest

log = logging.getLogger(__name__)

GAIN_RATIOS = (0.1, 0.5)  # searched in the paper


def configured(subject: Subject, make: Maker, knobs: Mapping[str, float]) -> tuple[Heuristic | None, Any]:
    """The heuristic and gain_ratio with these knobs."""
    taus = {name.removeprefix("tau/"): value for name, value in knobs.items() if name.startswith("tau/")}
    gains = {name.removeprefix("gain_ratio/"): v for name, v in knobs.items() if name.startswith("gain_ratio/")}
    heuristic = make(tau=taus)
    return heuristic, {**gains, "*": GAIN_RATIOS[1]} if gains else plain(subject.cfg.exprune.gain_ratio)


def chosen_trials(study: optuna.Study, cfg: DictConfig) -> list[FrozenTrial]:
    """The trials of the front that are measured, the least saving first.

    Raises:
        SettingError: there are none.
    """
    points = front(study, cfg.search.max_drop)
    if not points:
        raise SettingError(
            f"search.max_drop={cfg.search.max_drop}: no trial drops less; allow more trials or more points"
        )
    chosen = [points[k] for k in sorted({round(k) for k in np.linspace(0, len(points) - 1, cfg.search.front)})]
    if cfg.search.limit is not None:
        chosen = spread(study, cfg.search.max_drop, cfg.search.front) or chosen
    return chosen


def promised_trials(chosen: list[FrozenTrial], subject: Subject, make: Maker, batches: list) -> list[int]:
    """The numbers of the trials, in a sequence of rising savings, that ``batches``, which no trial saw, let promise.

    Raises:
        SettingError: not even the first.
    """
    settings = subject.cfg.exprune
    error, drop = 1 - settings.confidence, settings.target_drop
    dense = run_pass(subject.trainer, subject.task, batches, None)

    def evidence() -> Iterator[PairedTest]:
        for trial in tqdm(chosen, desc="promise", disable=None, leave=False):
            heuristic, gain_ratio = configured(subject, make, trial.params)
            run = ExPrune(subject.sites, heuristic, gain_ratio=gain_ratio)
            yield drop_test(subject.task, dense, pass_and_saved(subject, run, batches, dense)[0])

    passed, test = how_many_pass(evidence(), drop, error)
    if not passed:
        where = f"trial {chosen[0].number}, which saves the least"
        raise out_of_reach(test, drop, error, len(dense.targets), subject.task.unit, where)
    return [trial.number for trial in chosen[:passed]]


def measure_front(
    study: optuna.Study, chosen: list[FrozenTrial], subject: Subject, make: Maker, promised: list[int] | None
) -> pd.DataFrame:
    """The chosen trials on all of validation, and those that are a front there on test: one row each.

    ``promised`` has the numbers of the trials that are; None where no promise was asked for.
    """
    cfg, folder = subject.cfg, Path(subject.cfg.paths.output_dir)
    command = shlex.join(["python", "evaluate.py", *cfg.overrides])

    def measured(trial: optuna.trial.FrozenTrial, split: str) -> dict[str, Any]:
        heuristic, gain_ratio = configured(subject, make, trial.params)
        assert heuristic is not None
        file = folder / split / f"{trial.number:05d}" / "result.json"
        of = file.with_name("fingerprint.txt")  # what an interrupted search in this folder has measured there
        run = ExPrune(subject.sites, heuristic, gain_ratio=gain_ratio)
        decided = fingerprint(subject.measured_on(split), about(run, gain_ratio), cfg.bootstrap, cfg.seed, command)
        if file.exists() and of.exists() and of.read_bytes() == decided.encode():
            try:
                return read_result(file)
            except SettingError as error:
                log.warning("%s; measured anew", error)
        result, _ = measure(subject, heuristic, gain_ratio, split, command)
        of.unlink(missing_ok=True)
        result.write(file)
        write_whole(of, lambda partial: partial.write_text(decided))
        return read_result(file)

    bar = tqdm(chosen, desc="front, valid", disable=None, leave=False)
    valid = [(trial, measured(trial, "valid")) for trial in bar]
    still = [pair for pair in valid if not any(_beats(other, pair[1]) for _, other in valid)]
    rows = []
    for trial, on_valid in tqdm(still, desc="front, test", disable=None, leave=False):
        on_test = row(measured(trial, "test"))
        on_test |= {
            "tau": None,  # stand in knobs, with the gain ratios
            "gain_ratio": None,
            "sites": sum(name.startswith("tau/") for name in trial.params),  # a gain_ratio may leave one untested
            "search": cfg.search.name,
            "trials": len(finished(study)),
            "trial": trial.number,
            **({} if promised is None else {"promised": trial.number in promised}),
            "valid_drop": round(on_valid["metric"]["drop"], 3),
            "valid_saved_percent": round(100 * on_valid["flops"]["saved"], 3),
            "knobs": json.dumps({name: round(value, 6) for name, value in trial.params.items()}),
        }
        rows.append(on_test)
    return pd.DataFrame(rows)


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours, theirs = ((of["metric"]["drop"], -of["flops"]["saved"]) for of in (one, other))
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]
