"""Search a heuristic's settings per site on the validation split (docs/method.md, section 2)."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from exprune.core import ExPrune, Heuristic, Prefix
from exprune.core.errors import SettingError
from exprune.files import write_whole
from exprune.lab.configured import heuristic_of
from exprune.lab.data.splits import check_measurable
from exprune.lab.evaluation.curve import Curve
from exprune.lab.evaluation.passes import run_pass
from exprune.lab.evaluation.subject import Inputs, Subject, plain, prepare
from exprune.lab.fingerprint import fingerprint, programs
from exprune.lab.fronts.chart import log_front
from exprune.lab.selection.front import GAIN_RATIOS, chosen_trials, measure_front, promised_trials, setting_of
from exprune.lab.selection.knobs import Maker, maker
from exprune.lab.selection.tuning import check_promise
from exprune.lab.studies import FINISHED, complete, finished, open_study
from exprune.lab.tracking import tracked

log = logging.getLogger(__name__)

_UNIFORM = (0.0, 0.02, 0.04, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1.0)  # shares of every range, which are tried first


def search(cfg: DictConfig) -> pd.DataFrame:
    """Search one tau per site (and one gain_ratio per masked site), then measure the front.

    Trials run on the validation split. The front is measured on all of it, and the trials that still form a front there
    are measured once on the test split.

    Returns:
        The table of the front.
    """
    heuristic = _checked(cfg)
    subject = prepare(cfg, heuristic, ["valid", "test"])
    run = ExPrune(subject.sites, heuristic, gain_ratio=GAIN_RATIOS[1])  # determines the sites that can be searched
    searched: list = list(subject.loader("valid"))
    unseen: list = []
    if (confidence := cfg.exprune.get("confidence")) is not None:
        searched, unseen = _halves(searched)
        for half in (searched, unseen):
            check_measurable(subject.task, half, f"exprune.confidence={confidence}: half of split=valid")
    inputs = Inputs(_spread(searched, cfg.search.limit))
    check_measurable(subject.task, inputs.batches, f"search.limit={cfg.search.limit}")
    ranges = _ranges(subject, run, inputs)
    make = maker(subject)
    about = _about(subject, run, make, inputs)
    study = open_study(cfg, _name(about), about)
    if not study.get_trials(deepcopy=False):
        for share in _UNIFORM:
            study.enqueue_trial({name: low + share * (high - low) for name, (low, high) in ranges.items()})
    folder = Path(cfg.paths.output_dir)
    with tracked(cfg, "search") as tracker:
        _run_trials(study, Curve(subject, inputs, cfg.search.max_drop), make, ranges)
        chosen = chosen_trials(study, cfg)
        promised = promised_trials(chosen, subject, make, Inputs(unseen)) if unseen else None
        table, on_test = measure_front(study, chosen, subject, make, promised)
        trials = study.trials_dataframe()
        trials = trials[trials["state"].isin([state.name for state in FINISHED])]
        write_whole(folder / "trials.csv", lambda partial: trials.to_csv(partial, index=False))
        write_whole(folder / "front.csv", lambda partial: table.to_csv(partial, index=False))
        log_front(tracker, on_test.assign(front=True), {"trials": trials})  # the front was chosen on validation
    log.info("front and trials: %s", folder)
    return table


def _checked(cfg: DictConfig) -> Heuristic:
    """The heuristic, after checking that it and the settings can be searched."""
    heuristic, name, search = heuristic_of(cfg), f"search={cfg.search.name}", cfg.search
    if heuristic is None:
        raise SettingError(f"{name}: there is nothing to search with exprune=none")
    if heuristic.tau_range is None:
        others = "search exprune=threshold, stats_test or calibrated"
        raise SettingError(f"{name}: {type(heuristic).__name__} has no tau for each site; {others}")
    if cfg.head.tau is not None:
        raise SettingError(f"{name}: a search covers the sites only; use head=none")
    for key in ("trials", "front", "limit"):
        if search[key] is not None and (not isinstance(search[key], int) or search[key] < 1):
            raise SettingError(f"search.{key}={search[key]}: must be a whole number, at least 1")
    if cfg.exprune.get("confidence") is not None:
        check_promise(cfg)
    if not isinstance(search.max_drop, int | float) or search.max_drop < 0:
        raise SettingError(f"search.max_drop={search.max_drop}: must be a number of points, at least 0")
    return heuristic


def _halves(batches: list) -> tuple[list, list]:
    """Every other batch, and the rest. If texts may continue across batches, the first half and the second."""
    if batches and hasattr(batches[0], "groups"):
        return batches[: len(batches) // 2], batches[len(batches) // 2 :]
    return batches[::2], batches[1::2]


def _spread(batches: list, limit: int | None) -> list:
    """The batches, or evenly spaced ones with about ``limit`` inputs."""
    if limit is None or not batches:
        return batches
    size = len(batches[0][0]) if isinstance(batches[0], tuple | list) else len(batches[0])
    keep = min(len(batches), max(1, round(limit / size)))
    return [batches[k * len(batches) // keep] for k in range(keep)]


class _Scale(Heuristic):
    """A heuristic that stops nothing, and records how low the estimated mean terms of each site are."""

    def __init__(self, n: int) -> None:
        super().__init__(None, n)
        self.lowest: dict[str, list[Tensor]] = {}

    def stop(self, seen: Prefix) -> Tensor:
        mean = (seen.s / seen.n + seen.r / seen.terms).float().flatten()
        some = mean[:: max(1, len(mean) // 100_000)]
        self.lowest.setdefault(seen.site.name, []).append(torch.quantile(some, 0.01).cpu())
        return torch.zeros_like(seen.s, dtype=torch.bool)


def _ranges(subject: Subject, run: ExPrune, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """The range of each parameter of the search, from "never stops" to "stops most".

    An unbounded tau (that of Threshold) ends at the 1 % quantile of the site's mean terms.
    """
    heuristic = run.heuristic
    assert heuristic is not None and heuristic.tau_range is not None  # _checked() ensures it
    low, high = heuristic.tau_range
    lowest = dict.fromkeys(run.taus, low)
    if not np.isfinite([low, high]).all():
        probe = _Scale(heuristic.stages[0])
        run_pass(subject.trainer, subject.task, inputs.batches[:1], ExPrune(run.sites, probe))
        lowest = {name: min(0.0, float(torch.stack(probe.lowest[name]).mean())) for name in run.taus}
    masked = [site.name for site in run.sites if site.name in run.taus and site.mask is not None]
    ranges = {f"tau/{name}": (of, high) for name, of in lowest.items()}
    return ranges | {f"gain_ratio/{name}": GAIN_RATIOS for name in masked}


def _name(about: Mapping[str, Any]) -> str:
    weights, inputs = about["weights"].removesuffix(".safetensors"), about["limit"] or "all"
    half = "-half" if "part" in about else ""
    return f"{weights}-{about['heuristic']}-n{about['stages'][0]}-{inputs}{half}-{about['fingerprint'][:8]}"


def _about(subject: Subject, run: ExPrune, make: Maker, inputs: Inputs) -> dict[str, Any]:
    """What determines a study's trials: readable values, and a fingerprint of everything."""
    cfg, heuristic = subject.cfg, run.heuristic
    assert heuristic is not None
    return {
        "model": cfg.model.name,
        "data": cfg.data.name,
        "weights": Path(subject.checkpoint).name,
        "heuristic": type(heuristic).__name__,
        "stages": list(heuristic.stages),
        "order": cfg.exprune.get("order"),
        "sites": list(run.taus),
        "limit": cfg.search.limit,
        **({} if cfg.exprune.get("confidence") is None else {"part": "half"}),
        "fingerprint": fingerprint(
            *(programs(), subject.identity, inputs.digest, make(tau=0.0), list(run.taus)),
            *(plain(cfg.exprune.gain_ratio), cfg.search.max_drop),
        ),
    }


def _run_trials(study: optuna.Study, curve: Curve, make: Maker, ranges: Mapping[str, tuple]) -> None:
    subject, wanted = curve.subject, curve.subject.cfg.search.trials

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        setting = setting_of(subject, make, {name: trial.suggest_float(name, *both) for name, both in ranges.items()})
        try:
            ExPrune(subject.sites, setting[0], gain_ratio=setting[1])
        except SettingError as error:  # with these gain ratios no neuron would be tested
            raise optuna.TrialPruned from error
        point = curve.at(setting)
        if point.pruned is None:
            raise optuna.TrialPruned
        return point.drop, point.saved

    done = len(finished(study))
    with tqdm(total=wanted, initial=done, desc="trials", disable=None, leave=False) as bar:
        while (done := len(finished(study))) < wanted:
            study.optimize(objective, n_trials=1)
            bar.update(len(finished(study)) - done)
    took = [trial.duration.total_seconds() for trial in complete(study) if trial.duration is not None]
    dense = curve.dense.seconds
    cost = f"takes {median(took) / dense if took else math.nan:.2f} times the dense pass of {dense:.1f} s (median)"
    log.info("study %s: %d trials; one that is not cut short %s", study.study_name, len(finished(study)), cost)
