"""Make a table and a plot of random divisions into validation and unseen inputs, for results/reproduce.py.

    python results/make/promise.py SWEEP results/gnn/promise

SWEEP contains the evaluations of settings from cautious to bold, on the validation and the test split. Both splits are
combined, and divided again at random 500 times into parts of the original sizes. What a rule chooses on one part is
evaluated on the other, which has sampling noise of its own, and on both together, which represent the population.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from exprune.api.paired_tests import PairedTest, accuracy_test, roc_auc_test
from exprune.api.sequence import how_many_pass
from exprune.files import write_whole
from exprune.lab.evaluation.result import read_result

DIVISIONS = 500
TARGETS = (0.5, 1.0)  # points
ERROR = 0.05
RULES = {
    "promised": "promised, 95 %",
    "kept": "within the target on validation",
    "reported": "within the target on the data reported",
}


@dataclass(frozen=True)
class Settings:
    """Predictions of every input under each setting, from cautious to bold.

    Attributes:
        pruned: Predictions (settings, inputs).
        dense: Predictions of the dense network (inputs,).
        targets: Targets (inputs,).
        units: Which inputs belong together (inputs,).
        saved: The share of FLOPs saved (settings,).
        test: The paired test, a function of dense predictions, pruned ones, targets and groups.
    """

    pruned: NDArray
    dense: NDArray
    targets: NDArray
    units: NDArray
    saved: NDArray
    test: Callable[..., PairedTest]
    grouped: bool
    of_validation: float  # of the units

    def tests(self, part: NDArray[np.bool_]) -> list[Callable[[], PairedTest]]:
        """The test of each setting on a part of the inputs (inputs,), created when it is called."""
        groups = self.units[part] if self.grouped else None
        rest = self.dense[part], self.targets[part], groups
        return [lambda one=one: self.test(rest[0], one[part], *rest[1:]) for one in self.pruned]


def read(sweep: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of a sweep, and what they have in common."""
    of_valid, of_test = (_results(sweep / split) for split in ("valid", "test"))
    pruned = [
        np.concatenate([_examples(one)["pruned"], _examples(other)["pruned"]])
        for one, other in zip(of_valid, of_test, strict=True)
    ]
    valid, test = _examples(of_valid[0]), _examples(of_test[0])
    inputs, grouped = pd.concat([valid, test], keys=[0, 1]), "group" in valid
    names = inputs["group"] if grouped else range(len(inputs))
    units = pd.factorize(pd.MultiIndex.from_arrays([inputs.index.get_level_values(0), names]))[0]
    share = len(valid) / len(inputs)
    saved = [[one["flops"]["saved"], other["flops"]["saved"]] for one, other in zip(of_valid, of_test, strict=True)]
    settings = Settings(
        pruned=np.stack(pruned),
        dense=inputs["dense"].to_numpy(),
        targets=inputs["target"].to_numpy(),
        units=units,
        saved=np.array(saved) @ [share, 1 - share],
        test=roc_auc_test if of_test[0]["metric"]["name"] == "roc_auc" else accuracy_test,
        grouped=grouped,
        of_validation=len(np.unique(units[: len(valid)])) / (units.max() + 1),
    )
    about = {key: of_test[0][key] for key in ("model", "data", "sparsity", "heuristic", "order", "checkpoint")}
    return settings, about | {"lams": json.dumps([one["lam"] for one in of_test]), "inputs": len(inputs)}


def _results(folder: Path) -> list[dict[str, Any]]:
    found = [read_result(file) | {"folder": file.parent} for file in folder.glob("*/result.json")]
    return sorted(found, key=lambda result: result["lam"])


def _examples(result: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(result["folder"] / "examples.parquet")


def boldest_within(tests: list[Callable[[], PairedTest]], target: float) -> int:
    """The number of settings up to the boldest one whose own drop is within the target."""
    within = [100 * test().drop <= target for test in tests]
    return len(within) - within[::-1].index(True) if any(within) else 0


def divided(settings: Settings, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which inputs are for validation in one random division (inputs,)."""
    count = settings.units.max() + 1
    return (rng.permutation(count) < round(settings.of_validation * count))[settings.units]


def outcomes(settings: Settings, target: float) -> pd.DataFrame:
    """For every division and rule: the drop on the other part and on all inputs in points, and the share saved."""
    rng, rows = np.random.default_rng(0), []
    on_all = [100 * test().drop for test in settings.tests(np.ones(len(settings.targets), dtype=bool))]
    for _ in tqdm(range(DIVISIONS), desc=f"divisions, {target:g} points", disable=None, leave=False):
        valid = divided(settings, rng)
        on_valid, on_rest = settings.tests(valid), settings.tests(~valid)
        chosen = {
            "promised": (how_many_pass((test() for test in on_valid), target / 100, ERROR)[0], on_rest),
            "kept": (boldest_within(on_valid, target), on_rest),
            "reported": (boldest_within(on_rest, target), on_valid),
        }
        for rule, (passed, other) in chosen.items():
            drop = 100 * other[passed - 1]().drop if passed else 0.0
            both = {"drop": drop, "drop_on_all": on_all[passed - 1] if passed else 0.0}
            rows.append({"rule": rule, **both, "saved": settings.saved[passed - 1] if passed else 0.0})
    return pd.DataFrame(rows)


def summary(of_rule: pd.DataFrame, target: float) -> dict[str, float]:
    """How often the target is exceeded, with 95 % intervals that assume independent divisions."""
    exceeded = {}
    for name, drops in (("exceeded", "drop"), ("exceeded_on_all", "drop_on_all")):
        beyond = of_rule[drops] > target
        interval = stats.binomtest(int(beyond.sum()), len(beyond)).proportion_ci(0.95, "exact")
        exceeded |= {name: beyond.mean(), f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {
        **exceeded,
        "mean_drop": of_rule["drop"].mean(),
        "worst_drop": of_rule["drop"].max(),
        "mean_saved_percent": 100 * of_rule["saved"].mean(),
        "nothing": (of_rule["saved"] == 0).mean(),
    }


def plot(found: dict[float, pd.DataFrame], title: str) -> Figure:
    """Plot the drops on the other part, by target and rule."""
    figure = Figure(figsize=(2.2 + 3 * len(found), 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (target, table) in zip(panels, found.items(), strict=True):
        for k, rule in enumerate(RULES):
            drops = table.loc[table["rule"] == rule, "drop"]
            axes.scatter(drops, k + np.linspace(-0.2, 0.3, len(drops)), s=3, color=f"C{k}")
            beyond, where = f"{(drops > target).mean():.1%} beyond", axes.get_yaxis_transform()
            axes.text(0.98, k - 0.28, beyond, transform=where, ha="right", size="small")
        axes.axvline(target, color="black", linewidth=1)
        axes.set(yticks=range(len(RULES)), yticklabels=RULES.values(), ylim=(len(RULES) - 0.5, -0.55))
        axes.set(xlabel="drop on the others, points", title=f"target {target:g} points")
    figure.suptitle(title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sweep", type=Path, help="folder of the evaluations")
    parser.add_argument("output", type=Path, help="what is written, without .csv and .png")
    options = parser.parse_args()
    settings, about = read(options.sweep)
    found = {target: outcomes(settings, target) for target in TARGETS}
    about |= {"validation_share": round(settings.of_validation, 4), "divisions": DIVISIONS}
    rows = [
        about | {"target_drop": target, "rule": RULES[rule]} | summary(table[table["rule"] == rule], target)
        for target, table in found.items()
        for rule in RULES
    ]
    table = pd.DataFrame(rows).round(4)
    write_whole(options.output.with_suffix(".csv"), lambda partial: table.to_csv(partial, index=False))
    figure = plot(found, f"{about['model']} on {about['data']}: {DIVISIONS} divisions of {about['inputs']:,} inputs")
    write_whole(options.output.with_suffix(".png"), lambda partial: figure.savefig(partial, format="png", dpi=120))
    print(table.drop(columns=list(about)).to_string(index=False))


if __name__ == "__main__":
    main()
