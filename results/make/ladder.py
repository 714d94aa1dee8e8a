"""Make exchangeability/ladder.csv and ladder.png: the savings with each more piece of knowledge about the terms.

    python results/make/ladder.py

The rows are those of other tables: NETWORK/ladder.csv (results/reproduce.py NETWORK/ladder), the front of the search of
StatsTest, beyond.csv and input_order.csv. In each the setting was chosen on the validation split, to save as much as
possible within a drop of 0.1 point and of 1, and measured on the test split. A step that no table has is left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from networks import INTO, RESULTS, whole

from exprune.files import write_whole
from exprune.lab.fronts.paper_table import paper_table, read

NETWORKS, LIMITS = ("gnn", "vgg11_bn", "resnet18", "opt"), (0.1, 1.0)
FOLDER = INTO / "exchangeability"
MODEL, SEVERAL = {"order": "model"}, [32, 64, 128, 192, 256]
# Each step: what is known, the table, and what its row has.
STEPS: list[tuple[str, str, dict[str, Any]]] = [
    ("nothing: the paper's test, one tau", "ladder", {"heuristic": "StatsTest", "finite_population": False}),
    ("that the terms are N in number", "ladder", {"heuristic": "StatsTest", "finite_population": True}),
    ("each site: a tau of its own, searched", "search", {}),
    ("how each neuron goes on (its line)", "ladder", {"heuristic": "Calibrated", "stages": [32], **MODEL}),
    ("how much the loss depends on each neuron", "ladder", {"heuristic": "Optimal", "stages": [32], **MODEL}),
    ("five tests in place of one", "ladder", {"heuristic": "Optimal", "stages": SEVERAL, **MODEL}),
    ("the same in the layer's order, without the loss", "beyond", {"heuristic": "Calibrated", "order": "layer"}),
    ("the loss again, and the layer's order", "beyond", {"heuristic": "Optimal", "order": "layer"}),
    ("each neuron's order", "beyond", {"heuristic": "Optimal", "order": "neuron"}),
    ("each input's order, largest first", "input_order", {"heuristic": "Optimal", "predict": False, "scope": "relu"}),
    ("a prediction in place of 0", "input_order", {"heuristic": "Optimal", "predict": True, "scope": "relu"}),
    ("every layer, not only before a ReLU", "input_order", {"heuristic": "Optimal", "scope": "all"}),
]


def rows_of(network: str) -> Iterator[dict[str, Any]]:
    for number, (step, table, wanted) in enumerate(STEPS, 1):
        for limit in LIMITS:
            row = _searched(network, limit) if table == "search" else _row(network, table, wanted, limit)
            if row is not None:
                about = {"network": network, "number": number, "step": step, "drop_limit": limit}
                figures = ("saved_percent", "drop_points", "drop_low", "drop_high")
                yield (
                    about | {name: round(float(row[name]), 3) for name in figures} | {"table": f"{network}/{table}.csv"}
                )


def _row(network: str, table: str, wanted: dict[str, Any], limit: float) -> Any:
    """Return the row of a table that was chosen for the limit, or None."""
    path = RESULTS / network / f"{table}.csv"
    for row in pd.read_csv(path).to_dict("records") if path.exists() else []:
        row["stages"] = json.loads(row["stages"]) if isinstance(row["stages"], str) else None
        chosen = isinstance(row["target"], str) and json.loads(row["target"])["target_drop"] == limit
        if chosen and all(row[name] == value for name, value in wanted.items()):
            return row
    return None


def _searched(network: str, limit: float) -> Any:
    """Return the setting of the search's front that saves most within the limit on the validation split."""
    found = paper_table(read([RESULTS / network / "search_stats_test_front.csv"])).set_index("drop_limit")
    row = found.loc[limit]
    return None if pd.isna(row["saved_percent"]) else row


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Plot one panel per network: the share saved by each step, at both limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="constrained")
    names = [step for step, *_ in STEPS]
    for axes, network in zip(figure.subplots(1, len(NETWORKS), sharey=True), NETWORKS, strict=True):
        for limit, shift, color in ((1.0, 0.2, "C0"), (0.1, -0.2, "C1")):
            of = rows[(rows.network == network) & (rows.drop_limit == limit)]
            axes.barh(of.number - 1 + shift, of.saved_percent, 0.38, color=color, label=f"within {limit:g} point")
        there = set(rows[rows.network == network].number)
        for number in range(1, len(names) + 1):
            if number not in there:
                axes.text(1, number - 1, "not measured", va="center", fontsize=7, color="gray")
        axes.set(title=whole(network), xlim=(-5, 92))
        axes.grid(axis="x", alpha=0.3)
    first = figure.axes[0]
    first.set_yticks(range(len(names)), names, fontsize=8)
    first.invert_yaxis()
    figure.axes[-1].legend(fontsize=7, loc="upper right")
    figure.supxlabel("FLOPs of the whole network saved on the test split (%)", fontsize=9)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=130, format="png"))


def main() -> None:
    table = pd.DataFrame(row for network in NETWORKS for row in rows_of(network))
    FOLDER.mkdir(exist_ok=True)
    write_whole(FOLDER / "ladder.csv", lambda partial: table.to_csv(partial, index=False))
    draw(table, FOLDER / "ladder.png")
    shown = table.pivot_table(index=["number", "step"], columns=["network", "drop_limit"], values="saved_percent")
    print(shown.to_string())


if __name__ == "__main__":
    main()
