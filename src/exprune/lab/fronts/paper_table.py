"""Make the paper's table from results: the largest saving at a drop of at most 0.1 and of at most 1 point.

python -m exprune.lab.fronts.paper_table FOLDER_OR_CSV... --csv table.csv --markdown table.md
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from exprune.core.errors import SettingError
from exprune.files import write_whole
from exprune.lab.evaluation.result import read_result

# From docs/method.md, section 4: % of the FLOPs saved at a drop of at most so many points, as ranges over the paper's
# networks (v1 and v2 are its versions), and the data they are measured on. For OPT, only fc1 counts (paper scope).
PUBLISHED = {
    "dense": {0.1: "10.98-26.3 (v1), 10.98-17.33 (v2)", 1.0: "21.01-39.05 (v1), 21.61-27.16 (v2)"},
    "statically pruned": {0.1: "10.24-11.11", 1.0: "13.91-14.39"},
}
_CIFAR10 = ("cifar10", "cifar10_jpeg")
PUBLISHED_ON = {"gnn": ("ogbg_molhiv",), "vgg11_bn": _CIFAR10, "resnet18": _CIFAR10, "opt": ("piqa",)}

# What identifies a row of the paper's table. Everything else in a result that was not measured is a setting.
_ABOUT = ["model", "data", "static", "sparsity", "seed", "sites", "heuristic", "metric", "checkpoint"]
_DEFAULTS = {"static": "none", "sparsity": 0.0, "seed": None, "sites": "", "checkpoint": ""}
_FIGURES = ["drop_points", "drop_low", "drop_high", "saved_percent", "scope_saved_percent"]  # points, percent
_REPORTED = [f"reported_{name}" for name in ("saved_percent", "scope_saved_percent", "drop_points")]
_NO_KNOB = {
    *("split inputs site_selection target metrics flops seconds versions command search trials trial front".split()),
    *("dense dense_low dense_high pruned pruned_low pruned_high dense_flops pruned_flops pruned_share".split()),
    *("negative_share wrong_share skippable_dense_percent skippable_pruned_percent head_saved_percent".split()),
    *("sites_saved_percent head_changed_share promised valid_drop valid_saved_percent nonzero_dense_flops".split()),
    *(_FIGURES + _ABOUT),
}


def read(sources: Sequence[Path]) -> pd.DataFrame:
    """One row per setting and split, from every ``result.json`` below the folders and every row of the tables.

    A table is the CSV of `exprune.lab.fronts.pareto`, or the ``front.csv`` of a search.

    Raises:
        SettingError: If a folder has no results, if a file is damaged, or if two results of one setting and split
            differ.
    """
    rows = [row for source in sources for row in (_of_table(source) if source.suffix == ".csv" else _of_folder(source))]
    table = pd.DataFrame(rows, columns=[*_ABOUT, "setting", "split", "inputs", *_FIGURES]).astype({"seed": "Int64"})
    # The folder of a W&B run contains a link to the result, which gives the same row again.
    table = table[table["heuristic"] != "none"].drop_duplicates()
    if table.empty:
        raise SettingError(f"{', '.join(map(str, sources))}: dense results alone; evaluate with exprune=stats_test")
    again = table[table.duplicated([*_ABOUT, "setting", "split"])]
    if len(again):
        what = again.iloc[0][["model", "data", "split", "heuristic", "setting"]].str.slice(stop=80)
        raise SettingError(f"{', '.join(what)}: two results of one setting that differ; leave one out")
    return table


def _of_folder(folder: Path) -> Iterator[dict[str, Any]]:
    paths = [folder] if folder.is_file() else sorted(folder.rglob("result.json"))
    if not paths:
        raise SettingError(f"no result.json below {folder}; run evaluate.py first, or name a table (.csv)")
    for path in paths:
        result = read_result(path)
        try:
            metric, flops, sites = result["metric"], result["flops"], result["site_selection"]
            sites = "all" if sites is None else sites if isinstance(sites, str) else ", ".join(sites)
            about = {"metric": metric["name"], "sparsity": round(result["sparsity"], 5), "sites": sites}
            saved = [100 * scope["saved"] for scope in (flops, flops["paper_scope"])]
            figures = [metric["drop"], *metric["interval"], *saved]
            yield from _rows(result | about, result["split"], figures, _on_valid(result.get("target")))
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(f"{path}: not a result.json of this version of evaluate.py ({error!r})") from error


def _of_table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for row in pd.read_csv(path).to_dict("records"):
            row = {key: value for key, value in row.items() if pd.notna(value)}
            row |= json.loads(row.pop("knobs", "{}")) | {"sites": str(row.get("sites", ""))}
            row |= {"stages": json.loads(row["stages"])} if "stages" in row else {}
            front = "valid_drop" in row  # a front.csv has every setting on both splits
            valid = [row["valid_drop"], row["valid_saved_percent"]] if front else _on_valid(row.get("target"))
            figures = [*(row[key] for key in _FIGURES[:-1]), row.get("scope_saved_percent")]
            yield from _rows(row, "test" if front else row["split"], figures, valid)
    except KeyError as error:
        raise SettingError(
            f"{path}: no table of exprune.lab.fronts.pareto and no front.csv: it has no {error}"
        ) from error
    except (OSError, TypeError, ValueError) as error:  # pandas raises ValueErrors
        raise SettingError(f"{path}: not a table ({str(error).strip().partition(chr(10))[0]})") from error


def _on_valid(target: dict[str, float] | str | None) -> list[float] | None:
    """What a setting found for a target reached on the validation split: drop in points, saving in percent."""
    if target is None:
        return None
    found = json.loads(target) if isinstance(target, str) else target
    return [found["valid_drop"], 100 * found["valid_saved"]]


def _rows(
    fields: dict[str, Any], split: str, figures: Sequence[Any], valid: Sequence[Any] | None
) -> Iterator[dict[str, Any]]:
    """A result's row with ``figures`` as in _FIGURES, and a row for its drop and saving on validation, if known."""
    knobs = {key: value for key, value in fields.items() if key not in _NO_KNOB and value is not None}
    about = {key: fields[key] if key in fields else _DEFAULTS[key] for key in _ABOUT}
    about["setting"] = json.dumps(knobs, sort_keys=True)
    row = {name: None if x is None else float(x) for name, x in zip(_FIGURES, figures, strict=True)}
    if split == "valid":
        valid = [row["drop_points"], row["saved_percent"]]
    else:
        yield about | row | {"split": split, "inputs": fields.get("inputs")}
    if valid is not None:  # rounded as in tables, so that rows are the same from any source
        drop, saved = (round(float(x), 3) for x in valid)
        yield about | {"split": "valid", "drop_points": drop, "saved_percent": saved}


def paper_table(results: pd.DataFrame) -> pd.DataFrame:
    """The setting that saves most within each drop limit, per model, data, static sparsity, seed, sites and heuristic.

    It is chosen by its values on the validation split if settings were measured there and on test, otherwise by those
    on test. The reported values are always those of the test split. ``setting`` is "none" if no setting is within the
    limit. ``reported_saved_percent`` and ``reported_drop_points`` belong to the setting that would be chosen by its
    test values. This is an optimistic choice on the reported data, for comparison with published figures.
    """
    test, valid = (results[results["split"] == split].drop(columns="split") for split in ("test", "valid"))
    by_valid = {"drop_points": "valid_drop_points", "saved_percent": "valid_saved_percent"}
    key = [*_ABOUT, "setting"]
    both = test.merge(valid[[*key, *by_valid]].rename(columns=by_valid), how="outer", on=key)
    rows = []
    for about, settings in both.groupby(_ABOUT, dropna=False):
        chosen_on = "validation" if settings["valid_drop_points"].notna().any() else "test (optimistic)"
        drop, saved = by_valid.values() if chosen_on == "validation" else by_valid
        tested = settings.dropna(subset="drop_points")
        for limit in PUBLISHED["dense"]:
            best = _best(tested, drop, saved, limit)
            reported = _best(tested, "drop_points", "saved_percent", limit)
            row = dict(zip(_ABOUT, about, strict=True)) | {"drop_limit": limit, "chosen_on": chosen_on}
            model, data, static = about[:3]
            row |= {"published_percent": _published(model, data, static, limit)}
            row |= {"setting": "none" if len(tested) else "none measured on test"}
            row |= {f"reported_{name}": value for name, value in reported.items() if name in _FIGURES}
            rows.append(row | best)
    columns = ["drop_limit", "saved_percent", "scope_saved_percent", "published_percent", *_FIGURES[:3]]
    columns += [*by_valid.values(), *_REPORTED, "inputs", "chosen_on", "setting"]
    return pd.DataFrame(rows, columns=[*_ABOUT, *columns]).astype({"inputs": "Int64", "seed": "Int64"}).round(5)


def _best(settings: pd.DataFrame, drop: str, saved: str, limit: float) -> dict[str, Any]:
    """The setting that saves most within the limit; empty if there is none."""
    within = settings[settings[drop] < limit + 5e-4]  # tables are rounded to three digits of a point
    best = within.sort_values([saved, drop], ascending=[False, True]).drop(columns=_ABOUT).head(1)
    return best.iloc[0].to_dict() if len(best) else {}


def _published(model: str, data: str, static: str, limit: float) -> str:
    if data not in PUBLISHED_ON.get(model, ()) or (static != "none" and model != "vgg11_bn"):
        return ""
    return PUBLISHED["dense" if static == "none" else "statically pruned"][limit]


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text for printing, without columns that would be empty."""

    def number(name: str, form: str) -> pd.Series:
        return table[name].map(form.format, na_action="ignore")

    text = table[["model", "data"]].copy()
    if (table["static"] != "none").any():
        text["sparsity"] = number("sparsity", "{:.1%}")
    text["seed"] = table["seed"].astype("string")
    text[["sites", "heuristic"]] = table[["sites", "heuristic"]]
    text["drop up to"] = number("drop_limit", "{:g}")
    text["saved %"] = number("saved_percent", "{:.2f}").fillna("none")
    if ((table["scope_saved_percent"] - table["saved_percent"]).abs() > 1e-3).any():
        text["saved % of published scope"] = number("scope_saved_percent", "{:.2f}")
    text["published %"] = table["published_percent"]
    text["drop"] = number("drop_points", "{:+.2f}")
    text["95 % interval"] = "[" + number("drop_low", "{:+.2f}") + ", " + number("drop_high", "{:+.2f}") + "]"
    if table["valid_drop_points"].notna().any():
        text["valid drop"] = number("valid_drop_points", "{:+.2f}")
        text["chosen on test: saved %"] = number("reported_saved_percent", "{:.2f}").fillna("none")
    text["chosen on"] = table["chosen_on"]
    text["setting"] = table["setting"].map(lambda setting: shorten(setting, 60, placeholder=" ..."))
    if table.duplicated([*_ABOUT[:-1], "drop_limit"]).any():  # several networks with the same seed
        text["checkpoint"] = table["checkpoint"]
    return text.astype(object).where(text.notna(), "")


def as_markdown(text: pd.DataFrame) -> str:
    lines = [text.columns, ["---"] * len(text.columns), *text.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m exprune.lab.fronts.paper_table", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", nargs="+", type=Path, help="folders of evaluate.py, or tables (.csv) made from them")
    parser.add_argument("--csv", type=Path, help="file to write the full table to")
    parser.add_argument("--markdown", type=Path, help="file to write the printed table to")
    options = parser.parse_args(arguments)
    try:
        table = paper_table(read(options.results))
        text = as_text(table)
        if options.csv:
            write_whole(options.csv, lambda partial: table.to_csv(partial, index=False))
        if options.markdown:
            write_whole(options.markdown, lambda partial: partial.write_text(as_markdown(text)))
    except SettingError as error:
        sys.exit(f"error: {error}")
    print(text.to_string(index=False))
    print("\nDrops are in points. Published: ranges over the networks of the paper (docs/method.md, section 4).")


if __name__ == "__main__":
    main()
