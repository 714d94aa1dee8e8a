"""Makes the tables in language_models: every rule, under one protocol (docs/language_models.md).

    python results/make/language_models.py smollm2            # WikiText-2; goes on where it was interrupted
    python results/make/language_models.py smollm2 --piqa     # the settings found there, on PIQA's measured half
    python results/make/language_models.py smollm2 --division # which layers each rule leaves out
    python results/make/language_models.py llama              # or opt: the embedded networks, on Python's source

Every rule has one setting. For each of four limits of the mean KL(dense || pruned) it is found on 1,022 tokens of the
validation split, and measured once on at least 20,000 tokens of the test split; every token is pruned. All rules are
calibrated on the same 4,096 tokens. Seed 0. EXPRUNE_DATA_DIR names the data. Takes some hours on two cores.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from composed import subject_of
from networks import INTO
from tqdm import tqdm

from exprune.core import (
    Calibrated,
    Cats,
    Chess,
    ExPrune,
    Heuristic,
    Optimal,
    RSparse,
    SiteStatistics,
    StatsTest,
    Teal,
    Threshold,
    TopK,
    Wina,
    select_sites,
)
from exprune.files import write_whole
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.evaluation.measure import compare, divergence_of
from exprune.lab.evaluation.passes import Pass
from exprune.lab.evaluation.result import flops_per_input
from exprune.lab.evaluation.store import measured
from exprune.lab.evaluation.subject import Inputs, Subject

TABLES = INTO / "language_models"
TABLE, PIQA, DIVISION = TABLES / "wikitext2.csv", TABLES / "piqa.csv", TABLES / "division.csv"
LIMITS = (0.05, 0.02, 0.1, 0.01)  # nats; the order in which they are measured
OPTIMAL = ("exprune=optimal", "exprune.lam=1e-12", "exprune.predict=true", "exprune.scope=all", "exprune.order=input")
NETWORKS = {
    "smollm2": ("experiment=real/smollm2", "exprune.lam=1e-12", "data.limit=44"),
    "llama": ("model=llama", "model.epochs=4", *OPTIMAL, "exprune.inputs=16", "data.limit=80",
              "checkpoint=checkpoints/llama-stdlib-none-seed0-ff101a98.safetensors"),
    "opt": ("model=opt", *OPTIMAL, "exprune.inputs=16", "data.limit=80",
            "checkpoint=checkpoints/opt-stdlib-none-seed0-36dcf850.safetensors"),
}  # fmt: skip
SHARES = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75]
RISKS = [0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
BEFORE_RELU = "*fc1"
PRICES = [1e-10 * 4**step for step in range(12)]

Statistics = dict[str, SiteStatistics]


@dataclass(frozen=True)
class Rule:
    """One curve: the heuristic at a setting, its settings from cautious to bold, and whether the head is in play."""

    make: Callable[[Statistics, float], Heuristic]
    settings: list[float]
    head: bool = False
    layers: str = "*"


RULES = {
    "optimal": Rule(lambda of, lam: Optimal(lam, statistics=of, predict=True), PRICES),
    "wina": Rule(lambda of, tau: Wina(tau), SHARES),
    "teal": Rule(lambda of, tau: Teal(tau, of), SHARES),
    "top-k": Rule(lambda of, tau: TopK(tau), SHARES),
    "teal, greedy": Rule(lambda of, tau: Teal(tau, of, divide="greedy"), SHARES),
    "r-sparse, rank 16": Rule(lambda of, tau: RSparse(tau, 16), SHARES),
    "cats": Rule(lambda of, tau: Cats(tau, of), SHARES),
    "chess, feed-forward": Rule(lambda of, tau: Chess(tau, of), SHARES, layers="*mlp*"),
    "optimal, head": Rule(lambda of, lam: Optimal(lam, statistics=of, predict=True), PRICES, head=True),
    "calibrated, fc1": Rule(lambda of, tau: Calibrated(tau, statistics=of), RISKS, layers=BEFORE_RELU),
    "stats_test, fc1": Rule(lambda of, tau: StatsTest(tau), RISKS, layers=BEFORE_RELU),
    "threshold, fc1": Rule(lambda of, tau: Threshold(tau), [-0.3, -0.1, -0.03, -0.01, -0.003, 0.0], layers=BEFORE_RELU),
    "wina, head": Rule(lambda of, tau: Wina(tau), SHARES, head=True),
}


def both_passes(
    subject: Subject, statistics: Statistics, rule: str, setting: float, inputs: Inputs
) -> tuple[Pass, Pass, ExPrune]:
    """The dense pass over some inputs, that of a rule at a setting, and what counted in it."""
    of, head = RULES[rule], subject.task.network.get_output_embeddings()
    sites = select_sites(subject.sites, of.layers)
    if not of.head:
        sites = [replace(site, reason="the head") if site.module is head else site for site in sites]
    run = ExPrune(sites, of.make(statistics, setting), gain_ratio=1000.0)
    return measured(subject, inputs), measured(subject, inputs, run, 1000.0), run


def passed(subject: Subject, statistics: Statistics, rule: str, setting: float, inputs: Inputs) -> dict[str, Any]:
    """What a rule's setting saves and changes on some inputs."""
    start = time.perf_counter()
    dense, pruned, run = both_passes(subject, statistics, rule, setting, inputs)
    change = divergence_of(dense, pruned, 0)
    assert change is not None  # of a language model
    ratio = pruned.columns["loss"] - dense.columns["loss"]
    return {
        "saved": flops_per_input("token", run.flops, dense, pruned).saved,
        **{f"kl_{name}": value for name, value in change.items()},
        **{f"perplexity_{side}": math.exp(one.columns["loss"].mean()) for side, one in _sides(dense, pruned)},
        **{f"accuracy_{side}": subject.task.score(one.predictions, one.targets) for side, one in _sides(dense, pruned)},
        "ln_perplexity_ratio": float(ratio.mean()),
        "seconds": round(time.perf_counter() - start),
    }


def _sides(dense: Any, pruned: Any) -> list[tuple[str, Any]]:
    return [("dense", dense), ("pruned", pruned)]


def found(subject: Subject, statistics: Statistics, rule: str) -> dict[float, float]:
    """The setting for each limit, by interpolation over the logarithm of KL on the first batch of validation."""
    inputs, settings, apart = Inputs([next(iter(subject.loader("valid")))]), [], []
    for setting in tqdm(RULES[rule].settings, desc=f"{rule}, validation", disable=None, leave=False):
        settings.append(setting)
        apart.append(max(1e-9, passed(subject, statistics, rule, setting, inputs)["kl_mean"]))
        if apart[-1] > 1.2 * max(LIMITS):
            break
    apart = list(np.maximum.accumulate(apart))
    scaled = np.log(settings) if RULES[rule].settings is PRICES else np.array(settings)
    at = {limit: float(np.interp(math.log(limit), np.log(apart), scaled)) for limit in LIMITS if limit <= apart[-1]}
    return {limit: math.exp(x) if RULES[rule].settings is PRICES else x for limit, x in at.items()}


def measure(network: str) -> None:
    """Add what is missing of a network to the table, a row at a time."""
    subject = subject_of(*NETWORKS[network])
    statistics = statistics_of(subject)
    settings = {rule: found(subject, statistics, rule) for rule in RULES if not _skipped(subject, rule)}
    for rule, limit in sorted(((r, limit) for r in settings for limit in settings[r]), key=_turn):
        rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["network", "rule", "limit"])
        if ((rows.network == network) & (rows.rule == rule) & (rows.limit == limit)).any():
            continue
        setting = settings[rule][limit]
        row = {"network": network, "data": subject.cfg.data.name, "rule": rule, "limit": limit, "setting": setting}
        row |= passed(subject, statistics, rule, setting, subject.inputs("test"))
        table = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        write_whole(TABLE, lambda partial, table=table: table.to_csv(partial, index=False, float_format="%.6g"))
        print(f"{network} {rule} {limit}: {row['saved']:.2%} at {row['kl_mean']:.4f}, {row['seconds']} s", flush=True)


def _turn(of: tuple[str, float]) -> float:
    """The first rules get all of their limits before the last ones get their first: a table that was cut is of use."""
    rule, limit = of
    return LIMITS.index(limit) + list(RULES).index(rule) / 4


def _skipped(subject: Subject, rule: str) -> bool:
    """CATS, and CHESS of the feed-forward layers alone, are for layers with a gate; the paper's tests for ReLUs."""
    if RULES[rule].layers == BEFORE_RELU:
        return not any(site.rectified for site in select_sites(subject.sites, BEFORE_RELU))
    return rule in ("cats", "chess, feed-forward") and not any(site.gated for site in subject.sites)


def piqa(network: str, limits: tuple[float, ...] = (0.05, 0.02)) -> None:
    """What the settings that were found for the limits do to the measured half of PIQA's questions."""
    subject = subject_of(*(s for s in NETWORKS[network] if not s.startswith("data.limit")), "data=piqa")
    statistics = statistics_of(subject_of(*NETWORKS[network]))
    inputs, rows = subject.inputs("test"), pd.read_csv(TABLE)
    for row in (
        rows[(rows.network == network) & rows.limit.isin(limits)]
        .sort_values("limit", ascending=False, kind="stable")
        .itertuples()
    ):
        old = pd.read_csv(PIQA) if PIQA.exists() else pd.DataFrame(columns=["network", "rule", "limit"])
        if ((old.network == network) & (old.rule == row.rule) & (old.limit == row.limit)).any():
            continue
        dense, pruned, run = both_passes(subject, statistics, row.rule, row.setting, inputs)
        new: dict[str, Any] = {"network": network, "rule": row.rule, "limit": row.limit, "setting": row.setting}
        new |= {"questions": len(dense.targets), "saved": flops_per_input("example", run.flops, dense, pruned).saved}
        for metric, column in (("acc", "prediction"), ("acc_norm", "per_character")):
            sides = [
                replace(one, columns={**one.columns, "prediction": one.columns[column]}) for one in (dense, pruned)
            ]
            of_metric = compare(subject.task, *sides, 10_000, 0)
            low, high = of_metric.interval
            new |= {f"{metric}_dense": of_metric.dense, f"{metric}_pruned": of_metric.pruned}
            new |= {f"{metric}_drop": of_metric.drop, f"{metric}_drop_low": low, f"{metric}_drop_high": high}
        table = pd.concat([old, pd.DataFrame([new])], ignore_index=True)
        write_whole(PIQA, lambda partial, table=table: table.to_csv(partial, index=False, float_format="%.6g"))
        print(new, flush=True)


def division(network: str) -> None:
    """What share of each kind of layer's FLOPs a rule leaves out, on the tokens that settings are found on."""
    subject = subject_of(*NETWORKS[network])
    statistics, rows = statistics_of(subject), []
    inputs, measured_rows = Inputs([next(iter(subject.loader("valid")))]), pd.read_csv(TABLE)
    for row in measured_rows[(measured_rows.network == network) & (measured_rows.limit == 0.05)].itertuples():
        dense, pruned, run = both_passes(subject, statistics, row.rule, row.setting, inputs)
        change = divergence_of(dense, pruned, 0)
        assert change is not None
        kinds: dict[str, list[int]] = {}
        for count in run.flops.sites:
            of_kind = kinds.setdefault(count.site.name.rsplit(".", 1)[-1], [0, 0])
            of_kind[0] += count.dense_flops
            of_kind[1] += count.dense_flops - count.pruned_flops + count.spared
        for kind, (flops, saved) in kinds.items():
            shares = {"of_network": flops / run.flops.dense, "saved": saved / flops}
            rows.append({"network": network, "rule": row.rule, "kl": change["mean"], "layers": kind, **shares})
    table = pd.DataFrame(rows)
    old = pd.read_csv(DIVISION) if DIVISION.exists() else table.iloc[:0]
    table = pd.concat([old[old.network != network], table], ignore_index=True)
    write_whole(DIVISION, lambda partial: table.to_csv(partial, index=False, float_format="%.4g"))
    print(table.pivot_table(index="rule", columns="layers", values="saved").round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS, nargs="?")
    parser.add_argument("--piqa", action="store_true")
    parser.add_argument("--division", action="store_true")
    chosen = parser.parse_args()
    if chosen.network:
        (piqa if chosen.piqa else division if chosen.division else measure)(chosen.network)


if __name__ == "__main__":
    main()
