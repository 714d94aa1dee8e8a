"""Make one table from many ``result.json`` files, with its fronts and a plot of the metric against FLOPs saved.

python -m exprune.lab.fronts.pareto FOLDER_OR_CSV... --csv table.csv --plot front.png
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exprune.core.errors import SettingError
from exprune.files import write_whole
from exprune.lab.evaluation.result import read_result

PANEL = ["data", "split", "metric"]  # rows that fit into one plot have these in common
NETWORK = ["model", "static", "sparsity", "seed", "checkpoint"]  # identifies a dense baseline
# Identifies a front.
CURVE = [*NETWORK, "site_selection", "scope", "heuristic", "order", "predict", "finite_population"]
_SINCE = {"scope": "relu", "predict": False, "finite_population": False}  # for older tables without these columns
_MANY_TAUS = ("{", "[")  # a table's tau begins with one of these if sites have their own


def find_results(folder: Path) -> list[Path]:
    """Every ``result.json`` below a folder, without the copies that W&B keeps."""
    paths = sorted(folder.rglob("result.json"))
    return [path for path in paths if "wandb" not in path.relative_to(folder).parts]


def gather(sources: Sequence[Path]) -> pd.DataFrame:
    """One table from every ``result.json`` below the folders and from such tables (CSV). They must fit into one plot.

    Raises:
        SettingError: If there are no results, if a file is not such a table, or if data, splits or metrics differ.
    """
    folders = [source for source in sources if source.suffix != ".csv"]
    paths = [path for folder in folders for path in find_results(folder)]
    if folders and not paths:
        raise SettingError(f"no result.json below {', '.join(map(str, folders))}; run evaluate.py first")
    tables = [_read_table(source) for source in sources if source.suffix == ".csv"]
    table = pd.concat([*tables, tabulate(map(read_result, paths))] if paths else tables, ignore_index=True)
    for column in PANEL:
        if table[column].nunique() > 1:
            raise SettingError(f"results of different {column} in one table: {', '.join(table[column].unique())}")
    return table


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas raises ValueErrors
        raise SettingError(f"{path}: not a table ({str(error).strip().partition(chr(10))[0]})") from error
    table = table.assign(**{column: value for column, value in _SINCE.items() if column not in table})
    if missing := [column for column in (*PANEL, *CURVE, "saved_percent", "front") if column not in table]:
        raise SettingError(f"{path}: no table of exprune.lab.fronts.pareto: it has no {missing[0]}")
    return table.assign(**{column: table[column].astype(object).fillna("") for column in ("site_selection", "order")})


def tabulate(results: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per result, sorted by panel, curve and FLOPs saved; ``front`` marks the front of each curve."""
    table = pd.DataFrame([row(result) for result in results])
    order = [*PANEL, *CURVE, "saved_percent"]
    table = table.sort_values(order).reset_index(drop=True)
    table["front"] = False
    for _, curve in table[table["heuristic"] != "none"].groupby([*PANEL, *CURVE], dropna=False):
        table.loc[curve.index, "front"] = undominated(
            *(curve[of].to_numpy() for of in ("drop_points", "saved_percent"))
        )
    return table


def undominated(drop: NDArray, saved: NDArray) -> NDArray[np.bool_]:
    """Which points no other point dominates, with a drop that is no larger and a saving that is no smaller."""
    as_good = (drop <= drop[:, None]) & (saved >= saved[:, None])  # [k, j]: j as good as k in both
    better = (drop < drop[:, None]) | (saved > saved[:, None])
    return ~np.any(as_good & better, axis=1)


def row(result: dict[str, Any]) -> dict[str, Any]:
    """The row of a table for a ``result.json``: FLOPs in percent, the metric in points."""
    metric, flops = result["metric"], result["flops"]
    counts = [site for site in result["sites"] if site["outputs"]]
    outputs = sum(site["outputs"] for site in counts) or 1
    sides = {side: (metric[side], *metric[f"{side}_interval"]) for side in ("dense", "pruned")}
    ends = ("", "_low", "_high")
    return {
        **{key: result[key] for key in ("model", "data", "split", "inputs", "static")},
        "sparsity": round(result.get("sparsity", 0.0), 5),
        "seed": result["seed"],
        "sites": len(counts),
        "site_selection": json.dumps(selection) if (selection := result.get("site_selection")) else "",
        "heuristic": result["heuristic"],
        "tau": str(result["tau"]),
        "lam": result.get("lam"),
        "n": result["n"],
        "stages": json.dumps(stages) if (stages := result.get("stages")) else None,
        "gain_ratio": str(result.get("gain_ratio")),
        "order": result.get("order") or "",
        "predict": bool(result.get("predict")),
        "finite_population": bool(result.get("finite_population")),
        "scope": result.get("scope") or "relu",
        "target": json.dumps(target) if (target := result.get("target")) else None,
        "metric": metric["name"],
        **{side + end: round(x, 5) for side, of in sides.items() for end, x in zip(ends, of, strict=True)},
        "drop_points": round(metric["drop"], 3),
        **{f"drop{end}": round(x, 3) for end, x in zip(ends[1:], metric["interval"], strict=True)},
        "dense_flops": round(flops["dense"], 3),
        "pruned_flops": round(flops["pruned"], 3),
        "saved_percent": round(100 * flops["saved"], 3),
        "scope_saved_percent": round(100 * flops["paper_scope"]["saved"], 3),
        "sites_saved_percent": _of_sites(counts),
        **{
            f"{what}_share": round(sum(site[what] for site in counts) / outputs, 5)
            for what in ("pruned", "negative", "wrong")
        },
        "nonzero_dense_flops": round(nonzero["dense"], 3) if (nonzero := flops.get("without_zero_terms")) else None,
        **_skippable(flops),
        **_head(result.get("head")),
        "checkpoint": result["checkpoint"],
        "command": result["command"],
    }


def _of_sites(counts: list[dict[str, Any]]) -> float | None:
    """The share of the sites' own FLOPs that is saved, in %; None for older results without this information."""
    flops = [site["flops"] for site in counts if site.get("flops")]
    dense = sum(one["dense"] for one in flops)
    left = sum(one["pruned"] - one["spared"] for one in flops)
    return round(100 * (1 - left / dense), 3) if dense else None


def _skippable(flops: dict[str, Any]) -> dict[str, float | None]:
    """What skipping products with zeros would save in addition, without and with ExPrune, in % of the dense FLOPs."""
    skipping = flops.get("zero_skipping") or dict.fromkeys(("dense", "pruned"))
    return {
        f"skippable_{side}_percent": None if saved is None else round(100 * saved / flops["dense"], 3)
        for side, saved in skipping.items()
    }


def _head(head: dict[str, Any] | None) -> dict[str, float | None]:
    if head is None:
        return dict.fromkeys(("head_tau", "head_saved_percent", "head_changed_share"))
    saved, changed = round(100 * head["flops"]["saved"], 3), round(head["changed"] / head["rows"], 6)
    return {"head_tau": head["tau"], "head_saved_percent": saved, "head_changed_share": changed}


def network_label(row: pd.Series) -> str:
    """The name of a network in a legend."""
    sparse = f", {row['sparsity']:.0%} sparse" if row["sparsity"] else ""
    return f"{row['model']}{sparse}" + (f", seed {row['seed']}" if row["seed"] else "")


def curve_label(curve: pd.DataFrame) -> str:
    """The name of a curve in a legend. Under static pruning, some settings may leave a few of its sites untested."""
    row, sites = curve.iloc[0], curve["sites"].max()
    order = f", order {row['order']}" if row["order"] else ""
    beside = f"{', predicted' * bool(row['predict'])}{', all layers' * (row['scope'] == 'all')}"
    beside += ", finite population" * bool(row["finite_population"])
    by_site = ", tau by site" if str(row["tau"]).startswith(_MANY_TAUS) else ""
    return f"{network_label(row)}, {row['heuristic']}, {sites} sites{order}{beside}{by_site}"


def plot(table: pd.DataFrame, path: Path) -> None:
    """Plot the change of the metric (points, with the interval of the paired difference) against FLOPs saved."""
    panels = list(table.groupby(PANEL))
    figure = Figure(figsize=(7 * len(panels), 5.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for (names, rows), one in zip(panels, axes.flat, strict=True):
        _plot_panel(rows, one, *names)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=120, format=path.suffix.lstrip(".") or "png"))


def _plot_panel(rows: pd.DataFrame, axes: Axes, data: str, split: str, metric: str) -> None:
    pruned = rows[rows["heuristic"] != "none"]
    by_site = pruned["tau"].astype(str).str.startswith(_MANY_TAUS)  # a search's points are separate from a sweep
    curves = list(pruned.groupby([*CURVE, by_site], dropna=False))
    if len(curves) > 10:  # more than the default colours
        axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for _, curve in curves:
        drop, low, high = (curve[column] for column in ("drop_points", "drop_low", "drop_high"))
        errors = ((high - drop).clip(lower=0), (drop - low).clip(lower=0))
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "label": curve_label(curve)}
        line = axes.errorbar(curve["saved_percent"], -drop, yerr=errors, **style)[0]
        beaten = curve[~curve["front"]]  # drawn hollow
        axes.plot(beaten["saved_percent"], -beaten["drop_points"], "o", ms=2.5, color="white", zorder=line.zorder + 1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(-1, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("FLOPs saved, % of the dense network's")
    axes.set_ylabel(f"change of {metric}, points (95 % interval)")
    axes.set_title(f"{data}, {split} split (filled: on the front)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)  # outside of the plot


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m exprune.lab.fronts.pareto", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "sources", nargs="+", type=Path, help="run or sweep folders of evaluate.py, or tables made from them"
    )
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    parser.add_argument("--plot", type=Path, help="file to write the plot to (png, pdf, svg)")
    options = parser.parse_args(arguments)
    try:
        table = gather(options.sources)
        if options.csv:
            write_whole(options.csv, lambda partial: table.to_csv(partial, index=False))
        if options.plot:
            plot(table, options.plot)
    except SettingError as error:
        sys.exit(f"error: {error}")
    columns = ["model", "sites", "heuristic", "setting", "saved_percent", "dense", "pruned", "drop_points"]
    columns += ["drop_low", "drop_high"]
    print(table.assign(setting=table.apply(_setting, axis=1))[columns].to_string(index=False))


def _setting(row: pd.Series) -> str:
    if pd.notna(row.get("lam")):  # older tables have no such column
        return f"lam {row['lam']:.3g}"
    return "" if pd.isna(row["tau"]) or row["tau"] == "None" else f"tau {row['tau']}"


if __name__ == "__main__":
    main()
