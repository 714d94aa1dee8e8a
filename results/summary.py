"""Prints README's tables from those beside this file: the FLOPs saved within a drop, per network and test.

python results/summary.py               # every test, two rows a network
python results/summary.py --searches    # what the searches of one tau per site found, with intervals
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from exprune.lab.fronts.paper_table import PUBLISHED, paper_table, read

HERE = Path(__file__).parent
# Network -> model, weights removed, and the figure: of all FLOPs or of the published scope.
NETWORKS = {
    "GCN, ogbg-molhiv": ("gnn", 0.0, "saved_percent"),
    "VGG11-BN": ("vgg11_bn", 0.0, "saved_percent"),
    "ResNet18": ("resnet18", 0.0, "saved_percent"),
    "VGG11-BN, 2 % of the weights": ("vgg11_bn", 0.98, "saved_percent"),
    "embedded OPT, of `fc1`": ("opt", 0.0, "scope_saved_percent"),
}
COLUMNS = ("Threshold", "StatsTest", "Calibrated", "Optimal", "Optimal, `order=neuron`", "Oracle")


def summary() -> str:
    """Two rows a network, in Markdown. What is not measured yet is left empty."""
    lines = [f"| | drop up to | paper | {' | '.join(COLUMNS)} |", "|---|---" + "|---" * (1 + len(COLUMNS)) + "|"]
    for network, (model, sparsity, figure) in NETWORKS.items():
        name = _name(model, sparsity)
        tables = [path for path in (HERE / f"{name}_beyond.csv", *_fronts(name)) if path.exists()]
        if not tables:
            continue
        results = read(tables)
        by_neuron = results["setting"].map(lambda setting: json.loads(setting).get("order") == "neuron")
        results.loc[by_neuron, "heuristic"] += ", `order=neuron`"
        chosen = paper_table(results).set_index(["drop_limit", "heuristic"])
        for limit in PUBLISHED["dense"]:
            cells = [_cell(chosen, (limit, column), figure) for column in COLUMNS]
            lines.append(f"| {network} | {limit:g} | {_published(sparsity, limit)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def searches() -> str:
    """Two rows a search, in Markdown: chosen on the validation split, measured on test."""
    columns = ("drop up to", "on validation: saved, drop", "on test: saved", "change, points", "paper")
    lines = [f"| | | {' | '.join(columns)} |", "|---|---" + "|---" * len(columns) + "|"]
    for network, (model, sparsity, figure) in NETWORKS.items():
        for front in filter(Path.exists, _fronts(_name(model, sparsity))):
            for row in paper_table(read([front])).to_dict("records"):
                about = f"{network} | {row['heuristic']} | {row['drop_limit']:g}"
                lines.append(f"| {about} | {_found(row, figure)} | {_published(sparsity, row['drop_limit'])} |")
    return "\n".join(lines) + "\n"


def _name(model: str, sparsity: float) -> str:
    """How the names of a network's tables begin."""
    return model + ("_static" if sparsity else "")


def _fronts(name: str) -> list[Path]:
    return [HERE / f"{name}_search_{heuristic}_front.csv" for heuristic in ("threshold", "stats_test")]


def _published(sparsity: float, limit: float) -> str:
    return PUBLISHED["statically pruned" if sparsity else "dense"][limit].partition(" (v1)")[0]


def _found(row: dict[str, Any], figure: str) -> str:
    if pd.isna(row["saved_percent"]):
        return "none | |"
    change, low, high = (_change(row[name]) for name in ("drop_points", "drop_high", "drop_low"))
    on_valid = f"{row['valid_saved_percent']:.1f} %, {row['valid_drop_points']:.2f}"
    return f"{on_valid} | {row[figure]:.1f} % | {change} [{low}, {high}]"


def _change(drop: float) -> str:
    return f"{round(-float(drop), 2) + 0:+.2f}"  # no -0


def _cell(chosen: pd.DataFrame, key: tuple[float, str], figure: str) -> str:
    if key not in chosen.index:
        return ""
    row = chosen.loc[key]
    if pd.isna(row["saved_percent"]):
        return "none"
    if key[1] == "Oracle":
        return f"{row[figure]:.1f}"
    return f"{row[figure]:.1f} ({_change(row['drop_points'])})"


if __name__ == "__main__":
    sys.stdout.write(searches() if sys.argv[1:] == ["--searches"] else summary())
