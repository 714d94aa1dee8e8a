"""Write the measured tables (results/NETWORK/*.csv) into README.md and the pages of docs/results.

python results/make/tables.py            # rewrites the text between <!-- table: NAME --> and <!-- end -->
python results/make/tables.py --check    # reports where a document differs from the tables; exit code 1
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from answers import neurons, promises, reproduction
from language_tables import LANGUAGE
from networks import ACTIVATIONS, NETWORKS, RESULTS, WITH_RECIPES, whole
from speed import decoding, kernels, shares
from table_lines import NOT_YET, heading, line, not_yet
from theory_tables import THEORY

from exprune.files import write_whole
from exprune.lab.fronts.paper_table import PUBLISHED, paper_table, read

_DOCS = RESULTS.parent / "docs"
_PAGES = (*sorted((_DOCS / "results").glob("*.md")), _DOCS / "exchangeability.md", _DOCS / "language_models.md")
DOCUMENTS = (*_PAGES, RESULTS.parent / "README.md")
PAPER_TESTS = ("Threshold", "StatsTest")
BY_LAYER, BY_INPUT = "Optimal, `order=layer`", "Optimal, `order=input`"
COLUMNS = (
    *PAPER_TESTS,
    "Calibrated, `order=layer`",
    BY_LAYER,
    "Optimal, `order=neuron`",
    BY_INPUT,
    "Magnitude",
    "Oracle",
)
IN_README = {
    "vgg11_bn": "VGG11-BN, images",
    "resnet18": "ResNet18, images",
    "gnn": "graph network (GCN), molecules",
    "opt": "small language model (OPT), its `fc1` layers",
    "vgg11_bn_static": "VGG11-BN with 2 % of its weights left, images",
    "vgg11_bn_paper": "VGG11-BN trained as in the paper, images",
    "gnn_80": "GCN trained as in the paper, molecules",
}
_MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def readme() -> str:
    """One row per network: the better of the paper's tests and ours, within a drop of 1 point."""
    columns = ("network", "the paper's tests", "ours")
    lines = heading(*columns)
    for name, network in IN_README.items():
        chosen, figure = _chosen(name), WITH_RECIPES[name][1]
        saved = (max(chosen.loc[1.0, test][figure] for test in tests) for tests in (PAPER_TESTS, (BY_INPUT,)))
        lines.append(line(network, *(f"{percent:.0f}\u00a0%" for percent in saved)))
    return "\n".join(lines) + "\n"


def headline(limit: float) -> str:
    """One row per network: the better of the paper's tests and ours, within a drop, with savings and intervals."""
    columns = ("network", "the paper's tests", "`order=layer`", "`optimal`", "`magnitude`", "oracle")
    lines = heading(*columns)
    for name, (network, figure) in WITH_RECIPES.items():
        chosen = _chosen(name)
        best = max(PAPER_TESTS, key=lambda test: chosen.loc[limit, test][figure])
        cells = [_with_interval(chosen, (limit, test), figure) for test in (best, BY_LAYER, BY_INPUT, "Magnitude")]
        lines.append(line(network, *cells, _cell(chosen, 1.0, "Oracle", figure)))
    return "\n".join(lines) + "\n"


def tests() -> str:
    """Two rows per network with every test: the FLOPs saved within a drop, and the change on test."""
    lines = heading("", "drop up to", "paper", *COLUMNS)
    for name, (network, figure) in WITH_RECIPES.items():
        chosen = _chosen(name)
        for limit in _limits():
            cells = [_cell(chosen, limit, column, figure) for column in COLUMNS]
            lines.append(line(network, f"{limit:g}", _published(name, limit), *cells))
    return "\n".join(lines) + "\n"


def searches() -> str:
    """Two rows per search: chosen on the validation split, measured on test."""
    columns = ("", "", "drop up to", "on validation: saved, drop", "on test: saved", "change, points", "paper")
    lines = heading(*columns)
    for name, (network, figure) in WITH_RECIPES.items():
        for front in _fronts(name):
            for row in paper_table(read([front])).to_dict("records"):
                limit = row["drop_limit"]
                found = ("none", "", "")
                if not pd.isna(row["saved_percent"]):
                    on_valid = f"{row['valid_saved_percent']:.1f} %, {row['valid_drop_points']:.2f}"
                    found = (on_valid, f"{row[figure]:.1f} %", f"{_change(row)} {_interval(row)}")
                lines.append(line(network, row["heuristic"], f"{limit:g}", *found, _published(name, limit)))
    return "\n".join(lines) + "\n"


def beyond(name: str) -> str:
    """Our tests and their upper limit: swept settings, and those found on validation for a target."""
    table, (_, figure) = pd.read_csv(RESULTS / f"{name}/beyond.csv"), NETWORKS[name]
    scoped = figure == "scope_saved_percent"
    columns = ("", "knob", "target", "on validation: saved, drop", "saved", *(["of `fc1`"] if scoped else []), "change")
    lines = heading(*columns)
    for row in table.to_dict("records"):
        test = row["heuristic"] + ("" if row["heuristic"] == "Oracle" else f", `order={row['order']}`")
        knob = "" if row["heuristic"] == "Oracle" else _knob(row)
        target = json.loads(row["target"]) if isinstance(row["target"], str) else {}
        on_valid = _on_valid(target) if target else ""
        saved = [f"{row['saved_percent']:.1f} %", *([f"{row[figure]:.1f} %"] if scoped else [])]
        lines.append(line(test, knob, target.get("target_drop", ""), on_valid, *saved, _measured(row)))
    return "\n".join(lines) + "\n" + _made(table, f"{name}/beyond", f"python results/reproduce.py {name}/beyond")


def input_order() -> str:
    """In the order of each input, if measured: optimal stopping, skipped small inputs, and the oracle."""
    columns = ("", "", "target", "knob", "on validation: saved, drop", "saved", "without zero terms", "change")
    lines = heading(*columns)
    made = []
    for name, table in _tables("input_order"):
        network, figure = WITH_RECIPES[name]
        for row in table.sort_values(["heuristic", "predict", "saved_percent"], ascending=[False, True, True]).to_dict(
            "records"
        ):
            target = json.loads(row["target"]) if isinstance(row["target"], str) else {}
            outcomes = row["heuristic"] + (", predicted" if row["heuristic"] == "Optimal" and row["predict"] else "")
            everywhere = row["scope"] == "all"
            if everywhere:
                outcomes += ", every layer; the head by dominance" if row["head_saved_percent"] > 0 else ", every layer"
            nonzero = f"{100 * (1 - row['pruned_flops'] / row['nonzero_dense_flops']):.1f} %"
            saved = f"{row['saved_percent']:.1f} %"
            if everywhere and row["head_saved_percent"] > 0:
                saved += f" of the network, {row['head_saved_percent']:.1f} % of the head"
            elif figure == "scope_saved_percent":
                saved, nonzero = f"{row[figure]:.1f} % of `fc1`", f"{nonzero} of the network"
            chosen = (target["target_drop"], _knob(row), _on_valid(target)) if target else ("", "", "")
            cells = (outcomes, *chosen, saved, nonzero, _measured(row))
            lines.append(line(network, *cells))
        made.append(_made(table, f"{name}/input_order", f"python results/reproduce.py {name}/input_order"))
    return "\n".join(lines) + "\n" + "".join(made)


def parts() -> str:
    """The contribution of each part of the order of each input, in FLOPs saved at two levels of damage."""
    columns = ("", "", "saved at 0.001 nats", "at 0.01 nats")
    lines, made = heading(*columns), []
    for name, table in _tables("input_order_ablation"):
        for row in table.to_dict("records"):
            saved = (row.get(f"saved_percent_at_{level}", math.nan) for level in (0.001, 0.01))
            cells = ["not reached" if pd.isna(one) else f"{one:.1f} %" for one in saved]
            if max(json.loads(row["kl"])) < 1e-9:
                ((of_all,), (nonzero,)) = (json.loads(row[key]) for key in ("saved_percent", "without_zero_terms"))
                cells = [f"{of_all:.1f} % at 0 nats", f"{nonzero:.1f} % of a dense network that skips zeros"]
            lines.append(line(whole(name), row["variant"].strip(), *cells))
        made.append(
            f"\n`python results/reproduce.py {name}/input_order_ablation` makes "
            f"[the table](../results/{name}/input_order_ablation.csv): "
            f"{table['inputs'].iloc[0]:,} inputs of the validation split.\n"
        )
    return "\n".join(lines) + "\n" + "".join(made)


def damage() -> str:
    """The damage to the loss that optimal stopping expects, and the measured damage."""
    columns = ("", "lam", "saved", "expected", "with one factor a site", "measured")
    lines, made = heading(*columns), []
    for name, table in _tables("damage"):
        for row in table.to_dict("records"):
            nats = (f"{row[key]:.2g}" for key in ("expected", "expected_with_factors", "measured"))
            cells = (f"{row['lam']:.3g}", f"{row['saved_percent']:.1f} %", *nats)
            lines.append(line(whole(name), *cells))
        made.append(
            f"\n`python results/reproduce.py {name}/damage` makes [the table](../results/{name}/damage.csv) and "
            f"[its plot](../results/{name}/damage.png): {table['inputs'].iloc[0]:,} inputs of the validation split; "
            f"factors {table['factors'].iloc[0]}.\n"
        )
    return "\n".join(lines) + "\n" + "".join(made)


def one_tau(name: str) -> str:
    """The paper's tests with the same tau at every site, where they save anything."""
    _, figure = NETWORKS[name]
    table = pd.read_csv(RESULTS / f"{name}/one_tau.csv")
    shown = table[(table["saved_percent"] > 0) & (table["heuristic"].isin(PAPER_TESTS))]
    beside = [key for key in ("sparsity", "site_selection") if table[key].nunique(dropna=False) > 1]
    scoped = figure == "scope_saved_percent"
    columns = ["", "tau", *(_BESIDE[key] for key in beside), "saved", *(["of `fc1`"] if scoped else []), "change"]
    lines = heading(*columns)
    for row in shown.sort_values([*beside, "heuristic", "saved_percent"], na_position="first").to_dict("records"):
        saved = [f"{row['saved_percent']:.1f} %", *([f"{row[figure]:.1f} %"] if scoped else [])]
        lines.append(line(row["heuristic"], f"{float(row['tau']):g}", *(_about(row, k) for k in beside), *saved,
                           _measured(row)))  # fmt: skip
    return "\n".join(lines) + "\n" + _made(table, f"{name}/one_tau", f"python results/reproduce.py {name}/one_tau")


def activations() -> str:
    """What can be saved in the feed-forward layers with each activation, as far as measured."""
    return _without_relu("activations", "python results/reproduce.py {}/activations", lambda row: "")


def scopes() -> str:
    """What can be saved in the whole network: with sites before an activation only, and with every layer."""
    where = {"relu": ", before an activation", "all": ", every layer"}
    return _without_relu("scopes", "python results/reproduce.py {}/scopes", lambda row: where[row["scope"]])


def divergences() -> str:
    """Networks without ReLUs, compared at the same change of their predictions: what is saved in the network."""
    levels = (0.002, 0.005, 0.01, 0.02, 0.05)
    lines, made = heading("", "", *(f"at {level:g} nats" for level in levels)), []
    for name, table in _tables("divergence"):
        for row in table.to_dict("records"):
            saved = (row.get(f"saved_percent_at_{level}", math.nan) for level in levels)
            cells = ("not reached" if pd.isna(one) else f"{one:.1f} %" for one in saved)
            lines.append(line(whole(name), f"{row['test']}, {row['layers']}", *cells))
        made.append(
            f"\n`python results/reproduce.py {name}/divergence` makes [the table](../results/{name}/divergence.csv): "
            f"{table['inputs'].iloc[0]:,} inputs of the validation split.\n"
        )
    return "\n".join(lines) + "\n" + "".join(made)


def _without_relu(kind: str, command: str, where: Callable[[dict], str]) -> str:
    columns = ("", "", "target", "knob", "on validation: saved, drop", "of its sites", "of the network",
               "change")  # fmt: skip
    lines, made = heading(*columns), []
    for name, network in ACTIVATIONS.items():
        if not (file := RESULTS / f"{name}/{kind}.csv").exists():
            lines.append(not_yet(network, columns))
            continue
        table = pd.read_csv(file)
        order = ["heuristic", "scope", "saved_percent"]
        for row in table.sort_values(order, ascending=[False, False, True]).to_dict("records"):
            target = json.loads(row["target"])
            saved = (f"{row[of]:.1f} %" for of in ("sites_saved_percent", "saved_percent"))
            test = "Optimal, predicted" if row["heuristic"] == "Optimal" else row["heuristic"]
            chosen = (target["target_drop"], _knob(row), _on_valid(target))
            lines.append(line(network, test + where(row), *chosen, *saved, _measured(row)))
        made.append(_made(table, f"{name}/{kind}", command.format(name)))
    return "\n".join(lines) + "\n" + "".join(made)


def passes() -> str:
    """The cost of a pruned pass as a multiple of a dense one in the same run."""
    table = pd.read_csv(RESULTS / "pruned_pass.csv")
    tests = ("Threshold", "StatsTest", "Calibrated", "order=input", "calibration")
    lines = heading("network", "processor, threads", *tests)
    for row in table.to_dict("records"):
        times = (NOT_YET if pd.isna(row.get(key, float("nan"))) else f"{row[key]:.2f}" for key in tests)
        lines.append(line(row["network"], f"{row['processor']}, {row['threads']}", *times))
    commands = ";\n".join(f"`{command}`" for command in dict.fromkeys(table["command"]))
    return "\n".join(lines) + f"\n\nCommands: {commands}.\n"


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    **{f"headline {limit:g}": lambda limit=limit: headline(limit) for limit in (0.1, 1.0)},
    "tests": tests,
    "searches": searches,
    "passes": passes,
    "reproduction": reproduction,
    "neurons": neurons,
    "promises": promises,
    "activations": activations,
    "scopes": scopes,
    "divergences": divergences,
    "input order": input_order,
    "parts of the input order": parts,
    "damage": damage,
    "decoding": decoding,
    "decoding, in shares": shares,
    "kernels": kernels,
    **THEORY,
    **LANGUAGE,
    **{f"beyond {name}": lambda name=name: beyond(name) for name in NETWORKS},
    **{f"one tau {name}": lambda name=name: one_tau(name) for name in NETWORKS},
}
_BESIDE = {"sparsity": "weights left", "site_selection": "sites"}


def renewed(path: Path) -> str:
    """Return a document with every marked table renewed from the measured tables."""
    there = os.path.relpath(RESULTS, path.parent)

    def table(found: re.Match[str]) -> str:
        lines = TABLES[found[2]]().replace("](../results/", f"]({there}/")
        return f"{found[1]}\n{lines}\n{found[3]}"

    return _MARKED.sub(table, path.read_text())


def _tables(of: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The names and tables of the networks that have been measured in this way."""
    for name in (*WITH_RECIPES, *ACTIVATIONS):
        if (file := RESULTS / f"{name}/{of}.csv").exists():
            yield name, pd.read_csv(file)


def _limits() -> Sequence[float]:
    return list(PUBLISHED["dense"])


def _chosen(name: str) -> pd.DataFrame:
    """The setting that saves most within each limit, by limit and test."""
    by_input = RESULTS / f"{name}/input_order.csv"
    results = read([file for file in (*_fronts(name), RESULTS / f"{name}/beyond.csv", by_input) if file.exists()])
    settings = results["setting"].map(json.loads)
    by_input_oracle = (results["heuristic"] == "Oracle") & settings.map(lambda of: of.get("order") == "input")
    shown = results["heuristic"].isin(("Calibrated", "Optimal")) | by_input_oracle
    results["heuristic"] += settings.map(lambda of: f", `order={of.get('order')}`").where(shown, "")
    results = results[settings.map(lambda of: of.get("scope")) != "all"]
    chosen = paper_table(results).set_index(["drop_limit", "heuristic"])
    if not by_input.exists():
        return chosen.assign(without_zeros=math.nan)
    measured = pd.read_csv(by_input)
    # What was looked for at the smaller limit alone says nothing of the larger one.
    aimed = {
        (json.loads(target)["target_drop"], BY_INPUT if heuristic == "Optimal" else heuristic)
        for heuristic, target in measured[["heuristic", "target"]].dropna().itertuples(index=False)
    }
    looked_for = {heuristic for _, heuristic in aimed}
    chosen = chosen[[at in aimed or at[1] not in looked_for for at in chosen.index]]
    measured = measured.set_index(["saved_percent", "drop_points"])
    nonzero = {at: 100 * (1 - row["pruned_flops"] / row["nonzero_dense_flops"]) for at, row in measured.iterrows()}
    return chosen.assign(
        without_zeros=[nonzero.get(at) for at in zip(chosen["saved_percent"], chosen["drop_points"], strict=True)]
    )


def _fronts(name: str) -> list[Path]:
    return [RESULTS / f"{name}/search_{heuristic}_front.csv" for heuristic in ("threshold", "stats_test")]


def _published(name: str, limit: float) -> str:
    return PUBLISHED["statically pruned" if name.endswith("_static") else "dense"][limit]


def _with_interval(chosen: pd.DataFrame, at: tuple[float, str], figure: str) -> str:
    """Return what a test saves (of a dense network that skips zeros), with the interval of the change."""
    if at not in chosen.index:
        return NOT_YET
    row = chosen.loc[at]
    if pd.isna(row["saved_percent"]):
        return "none"
    without = (
        "" if pd.isna(row["without_zeros"]) or figure == "scope_saved_percent" else f" ({row['without_zeros']:.1f})"
    )
    return f"{row[figure]:.1f}{without}<br>{_interval(row)}"


def _cell(chosen: pd.DataFrame, limit: float, test: str, figure: str) -> str:
    if (limit, test) not in chosen.index:
        return NOT_YET
    row = chosen.loc[limit, test]
    if pd.isna(row["saved_percent"]):
        return "none"
    return f"{row[figure]:.1f}" + ("" if test == "Oracle" else f" ({_change(row)})")


def _on_valid(target: dict[str, float]) -> str:
    return f"{100 * target['valid_saved']:.1f} %, {target['valid_drop']:.2f}"


def _change(row: pd.Series | dict) -> str:
    return _signed(-row["drop_points"])


def _interval(row: pd.Series | dict) -> str:
    return f"[{_signed(-row['drop_high'])}, {_signed(-row['drop_low'])}]"


def _measured(row: dict) -> str:
    return "0" if row["heuristic"] == "Oracle" else f"{_change(row)} {_interval(row)}"


def _signed(points: float) -> str:
    return f"{round(float(points), 2) + 0:+.2f}"  # no -0


def _knob(row: dict) -> str:
    return f"lam {row['lam']:.3g}" if row["heuristic"] == "Optimal" else f"tau {float(row['tau']):.3g}"


def _about(row: dict, key: str) -> str:
    if key == "sparsity":
        return f"{1 - row[key]:.0%}"
    return "all" if pd.isna(row[key]) else f"`{row[key]}`"


def _made(table: pd.DataFrame, file: str, command: str) -> str:
    """What the table was measured on, and the command that makes it."""
    row = table.iloc[0]
    seeds = ", ".join(map(str, table["seed"].unique()))
    weights = ", ".join(f"`{name}`" for name in table["checkpoint"].unique())
    dense = ", ".join(dict.fromkeys(f"{value:.4f}" for value in table["dense"]))  # processors differ in the last digits
    return (
        f"\n`{command}` makes [the table]({f'../results/{file}.csv'}): {row['data']}, {row['split']} split, "
        f"{row['inputs']:,} inputs, seed {seeds}; dense {row['metric']} {dense}; weights {weights}.\n"
    )


def stale() -> list[Path]:
    """Return the documents that differ from the tables."""
    return [path for path in DOCUMENTS if renewed(path) != path.read_text()]


def main(arguments: Sequence[str]) -> int:
    found = stale()
    for path in found:
        if "--check" in arguments:
            print(
                f"error: {path.name}: not what results/*/*.csv give; run python results/make/tables.py", file=sys.stderr
            )
        else:
            write_whole(path, lambda partial, path=path: partial.write_text(renewed(path)))
            print(f"{path.name}: written anew")
    return int("--check" in arguments and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
