"""The front of a search, measured on validation and test, and guaranteed on inputs that the search never saw."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from tqdm import tqdm

from exprune.core.errors import SettingError
from exprune.lab.evaluation.curve import Curve, Setting
from exprune.lab.evaluation.measure import measure
from exprune.lab.evaluation.subject import Inputs, Subject, plain
from exprune.lab.fronts.pareto import row, tabulate, undominated
from exprune.lab.selection.guarantee import how_many_promised
from exprune.lab.selection.knobs import Maker
from exprune.lab.studies import complete, finished

GAIN_RATIOS = (0.1, 0.5)  # the range searched in the paper


def setting_of(subject: Subject, make: Maker, knobs: Mapping[str, float]) -> Setting:
    """The setting for the parameters ``tau/SITE`` and ``gain_ratio/SITE`` of a trial."""
    taus = {name.removeprefix("tau/"): value for name, value in knobs.items() if name.startswith("tau/")}
    gains = {name.removeprefix("gain_ratio/"): v for name, v in knobs.items() if name.startswith("gain_ratio/")}
    return make(tau=taus), {**gains, "*": GAIN_RATIOS[1]} if gains else plain(subject.cfg.exprune.gain_ratio)


def front(study: optuna.Study, max_drop: float) -> list[FrozenTrial]:
    """The complete trials that no other one beats in both drop and saving, up to a drop; ascending by saving."""
    best, lowest = [], float("inf")
    for trial in sorted(complete(study), key=lambda t: (-t.values[1], t.values[0])):
        if trial.values[0] < lowest:
            lowest = trial.values[0]
            if lowest <= max_drop:
                best.append(trial)
    return best[::-1]


def spread(study: optuna.Study, max_drop: float, count: int) -> list[FrozenTrial]:
    """The complete trial with the least drop in each of ``count`` equal ranges of saving, up to a drop.

    If trials saw only a part of the inputs, chance decides which of them form the front, and one lucky trial hides all
    trials that save less.
    """
    within = [trial for trial in complete(study) if trial.values[0] <= max_drop and trial.values[1] > 0]
    most = max((trial.values[1] for trial in within), default=0.0)
    best: dict[int, FrozenTrial] = {}
    for trial in sorted(within, key=lambda t: (t.values[0], -t.values[1])):
        best.setdefault(min(int(count * trial.values[1] / most), count - 1), trial)
    return [best[k] for k in sorted(best)]


def chosen_trials(study: optuna.Study, cfg: DictConfig) -> list[FrozenTrial]:
    """The trials of the front that will be measured, ascending by saving.

    Raises:
        SettingError: If there are none.
    """
    most, count = cfg.search.max_drop, cfg.search.front
    points = front(study, most)
    if not points:
        raise SettingError(f"search.max_drop={most}: no trial drops less; allow more trials or a larger drop")
    chosen = [points[k] for k in sorted({round(k) for k in np.linspace(0, len(points) - 1, count)})]
    return chosen if cfg.search.limit is None else spread(study, most, count) or chosen


def promised_trials(chosen: list[FrozenTrial], subject: Subject, make: Maker, unseen: Inputs) -> list[int]:
    """The numbers of the trials that can be guaranteed on ``unseen``, inputs that no trial saw.

    Trials are tested in order of rising savings.

    Raises:
        SettingError: If not even the first one can.
    """
    wanted = subject.cfg.exprune
    settings = (setting_of(subject, make, t.params) for t in tqdm(chosen, desc="promise", disable=None, leave=False))
    first = f"trial {chosen[0].number}, which saves the least"
    curve = Curve(subject, unseen)
    passed, *_ = how_many_promised(curve, settings, wanted.target_drop, 1 - wanted.confidence, first)
    return [trial.number for trial in chosen[:passed]]


def measure_front(
    study: optuna.Study, chosen: list[FrozenTrial], subject: Subject, make: Maker, promised: list[int] | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the chosen trials on all of validation, and those that still form a front there on test.

    Args:
        study: The study.
        chosen: The trials.
        subject: The trained network with its data and sites.
        make: Makes the heuristic.
        promised: The numbers of the guaranteed trials; None if no guarantee was requested.

    Returns:
        A table with one row per trial, and the results on test as `tabulate` returns them.
    """
    cfg = subject.cfg
    command = shlex.join(["python", "evaluate.py", *cfg.overrides])

    def measured(trials: list[FrozenTrial], split: str) -> list[dict[str, Any]]:
        results = []
        for trial in tqdm(trials, desc=f"front, {split}", disable=None, leave=False):
            result, _ = measure(subject, *setting_of(subject, make, trial.params), split, command)
            result.write(Path(cfg.paths.output_dir) / split / f"{trial.number:05d}" / "result.json")
            results.append(asdict(result))
        return results

    valid = measured(chosen, "valid")
    drops, saved = ([result[part][key] for result in valid] for part, key in (("metric", "drop"), ("flops", "saved")))
    still = undominated(np.array(drops), np.array(saved))
    chosen, drops, saved = (list(compress(values, still)) for values in (chosen, drops, saved))
    tests, rows = measured(chosen, "test"), []
    for trial, drop, share, on_test in zip(chosen, drops, saved, tests, strict=True):
        more = {
            "tau": None,  # in knobs, with the gain ratios
            "gain_ratio": None,
            "sites": sum(name.startswith("tau/") for name in trial.params),  # a gain_ratio may exclude a site
            "search": cfg.search.name,
            "trials": len(finished(study)),
            "trial": trial.number,
            **({} if promised is None else {"promised": trial.number in promised}),
            "valid_drop": round(drop, 3),
            "valid_saved_percent": round(100 * share, 3),
            "knobs": json.dumps({name: round(value, 6) for name, value in trial.params.items()}),
        }
        rows.append(row(on_test) | more)
    return pd.DataFrame(rows), tabulate(tests)
