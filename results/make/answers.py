"""Tables that answer two questions: are the published figures reproduced, and is a promise kept?"""

from typing import Any

import pandas as pd
from networks import NETWORKS, RESULTS, whole
from table_lines import NOT_YET, heading, line, not_yet

from exprune.lab.fronts.paper_table import PUBLISHED, paper_table, read

TESTS = {"threshold": "Threshold", "stats_test": "StatsTest"}
# What is changed -> how the names of the tables begin, by network.
CHANGES = {
    "": {"gnn": "gnn", "vgg11_bn": "vgg11_bn", "resnet18": "resnet18"},
    "2,000 trials, on a part of the validation split": {"gnn": "gnn_2000", "vgg11_bn": "vgg11_bn_2000"},
    "the paper's recipe": {"gnn": "gnn_80", "vgg11_bn": "vgg11_bn_paper"},
}


def reproduction() -> str:
    """What the paper's tests save within 0.1 and 1 point, chosen on validation data and on the reported data."""
    columns = ("", "changed", *(f"{test}, at {limit:g}" for test in TESTS.values() for limit in PUBLISHED["dense"]))
    lines = heading(*columns)
    lines.append(line("the paper", "", *(PUBLISHED["dense"][limit] for _ in TESTS for limit in PUBLISHED["dense"])))
    for network in ("gnn", "vgg11_bn", "resnet18"):
        for change, names in CHANGES.items():
            if network not in names:
                continue
            chosen = _chosen(names[network])
            for how, prefix in (("", ""), ("chosen on test", "reported_")):
                cells = [_cell(row, prefix) for row in chosen]
                lines.append(line(whole(network), ", ".join(filter(None, (change, how))) or "as it stands", *cells))
    return "\n".join(lines) + "\n"


def _chosen(name: str) -> list[dict[str, Any] | None]:
    """One row per test and limit; None if it has not been measured."""
    found: list[dict[str, Any] | None] = []
    for test in TESTS:
        file = RESULTS / f"{name}/search_{test}_front.csv"
        found += paper_table(read([file])).to_dict("records") if file.exists() else [None] * len(PUBLISHED["dense"])
    return found


def _cell(row: dict[str, Any] | None, prefix: str) -> str:
    if row is None:
        return NOT_YET
    saved, drop = row[f"{prefix}saved_percent"], row[f"{prefix}drop_points"]
    return "none" if pd.isna(saved) else f"{saved:.1f} % ({-drop:+.2f})"


def neurons() -> str:
    """By network, how many neurons are negative, and how many units are never positive."""
    lines = heading("", "inputs", "neurons negative", "units", "of them dead")
    for row in pd.read_csv(RESULTS / "neurons.csv").to_dict("records"):
        negative, dead = (f"{row[f'{share}_percent']:.1f} %" for share in ("negative", "dead"))
        lines.append(line(whole(row["network"]), f"{row['inputs']:,}", negative, f"{row['units']:,}", dead))
    return "\n".join(lines) + "\n"


def promises() -> str:
    """How often a setting's drop on other inputs exceeds its target, by the rule that chose it."""
    columns = ("", "target", "chosen", "beyond it on other inputs", "on all inputs", "mean drop on others", "worst",
               "mean saved")  # fmt: skip
    lines, made = heading(*columns), []
    for name in NETWORKS:
        network = whole(name)
        if not (file := RESULTS / f"{name}/promise.csv").exists():
            lines.append(not_yet(network, columns))
            continue
        table = pd.read_csv(file)
        for row in table.to_dict("records"):
            beyond = (_share(row, key) for key in ("exceeded", "exceeded_on_all"))
            cells = (f"{row['target_drop']:g}", row["rule"], *beyond)
            saved = f"{row['mean_saved_percent']:.1f} %"
            if row["nothing"] > 0:
                saved += f" (nothing in {row['nothing']:.0%})"
            drops = (f"{row[key]:+.2f}" for key in ("mean_drop", "worst_drop"))
            lines.append(line(network, *cells, *drops, saved))
        first = table.iloc[0]
        made.append(
            f"\n`python results/reproduce.py {name}/promise` makes [the table](../results/{name}/promise.csv) and "
            f"[its plot](../results/{name}/promise.png): {first['divisions']} divisions of {first['inputs']:,} inputs, "
            f"{first['validation_share']:.0%} of them for validation.\n"
        )
    return "\n".join(lines) + "\n" + "".join(made)


def _share(row: dict[str, Any], key: str) -> str:
    share, low, high = (100 * row[name] for name in (key, f"{key}_low", f"{key}_high"))
    return f"{share:.1f} % [{low:.1f}, {high:.1f}]"
