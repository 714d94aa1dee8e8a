"""From many ``result.json`` files to one table and its plot: metric against FLOPs saved.

python -m exprune.lab.pareto FOLDER... --csv table.csv --plot front.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no screen

import pandas as pd
from matplotlib import pyplot as plt

from exprune.core.errors import SettingError
from exprune.lab.files import write_whole
from exprune.lab.result import read_result


def gather(folders: Sequence[Path]) -> pd.DataFrame:
    """One row per ``result.json`` below the folders, sorted by model, sites, heuristic and FLOPs saved.

    Raises:
        SettingError: there is none, or they are of different data, splits or metrics.
    """
    paths = sorted(path for folder in folders for path in folder.rglob("result.json"))
    if not paths:
        raise SettingError(f"no result.json below {', '.join(map(str, folders))}; run evaluate.py first")
    table = pd.DataFrame([_row(read_result(path)) for path in paths])
    for column in ("data", "split", "metric"):
        if table[column].nunique() > 1:
            raise SettingError(f"results of different {column} in one table: {', '.join(table[column].unique())}")
    order = ["model", "sparsity", "sites", "heuristic", "saved_percent"]
    table = table.sort_values(order, ascending=[True, True, False, True, True]).reset_index(drop=True)
    return table if table["sparsity"].any() else table.drop(columns="sparsity")


def _row(result: dict) -> dict:
    metric, flops = result["metric"], result["flops"]
    counts = [site for site in result["sites"] if site["outputs"]]
    outputs = sum(site["outputs"] for site in counts) or 1
    return {
        "model": result["model"],
        "data": result["data"],
        "split": result["split"],
        "inputs": result["inputs"],
        "static": result["static"],
        "sparsity": round(result.get("sparsity", 0.0), 5),
        "seed": result["seed"],
        "sites": len(counts),
        "heuristic": result["heuristic"],
        "tau": str(result["tau"]),
        "n": result["n"],
        "metric": metric["name"],
        "dense": round(metric["dense"], 5),
        "dense_low": round(metric["dense_interval"][0], 5),
        "dense_high": round(metric["dense_interval"][1], 5),
        "pruned": round(metric["pruned"], 5),
        "pruned_low": round(metric["pruned_interval"][0], 5),
        "pruned_high": round(metric["pruned_interval"][1], 5),
        "drop_points": round(metric["drop"], 3),
        "drop_low": round(metric["interval"][0], 3),
        "drop_high": round(metric["interval"][1], 3),
        "dense_flops": round(flops["dense"], 3),
        "pruned_flops": round(flops["pruned"], 3),
        "saved_percent": round(100 * flops["saved"], 3),
        "pruned_share": round(sum(site["pruned"] for site in counts) / outputs, 5),
        "negative_share": round(sum(site["negative"] for site in counts) / outputs, 5),
        "wrong_share": round(sum(site["wrong"] for site in counts) / outputs, 5),
        "checkpoint": result["checkpoint"],
        "command": result["command"],
    }


def plot(table: pd.DataFrame, path: Path) -> None:
    """Change of the metric (points, with the interval of the paired difference) against FLOPs saved."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    pruned = table[table["heuristic"] != "none"]
    if "sparsity" in pruned:
        pruned = pruned.assign(model=pruned["model"] + pruned["sparsity"].map(" {:.0%} sparse".format))
    for (model, sites, heuristic), group in pruned.groupby(["model", "sites", "heuristic"]):
        group = group.sort_values("saved_percent")
        drop, low, high = (group[column] for column in ("drop_points", "drop_low", "drop_high"))
        errors = ((high - drop).clip(lower=0), (drop - low).clip(lower=0))
        label = f"{model}, {heuristic}, {sites} sites"
        axes.errorbar(group["saved_percent"], -drop, yerr=errors, marker="o", markersize=4, capsize=2, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(-1, color="grey", linewidth=0.8, linestyle="--")
    metric, data, split = (table[column].iloc[0] for column in ("metric", "data", "split"))
    axes.set_xlabel("FLOPs saved, % of the dense network's")
    axes.set_ylabel(f"change of {metric}, points (95 % interval)")
    axes.set_title(f"{data}, {split} split")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    write_whole(path, lambda partial: figure.savefig(partial, dpi=120, format=path.suffix.lstrip(".") or "png"))
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m exprune.lab.pareto", description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="run or sweep folders of evaluate.py")
    parser.add_argument("--csv", type=Path, help="write the table here")
    parser.add_argument("--plot", type=Path, help="write the plot here (png, pdf, svg)")
    options = parser.parse_args(arguments)
    try:
        table = gather(options.folders)
        if options.csv:
            write_whole(options.csv, lambda partial: table.to_csv(partial, index=False))
        if options.plot:
            plot(table, options.plot)
    except SettingError as error:
        sys.exit(f"error: {error}")
    columns = ["model", "sites", "heuristic", "tau", "saved_percent", "dense", "pruned", "drop_points"]
    print(table[[*columns, "drop_low", "drop_high"]].to_string(index=False))


if __name__ == "__main__":
    main()
