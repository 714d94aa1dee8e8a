"""Print the results of an evaluation, and log them to W&B."""

import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb
from rich.console import Console
from rich.table import Table

from exprune.lab.evaluation.result import Result
from exprune.lab.tracking import only_tracks

# The settings of a heuristic in a command, and those among them that other heuristics share.
_HEURISTIC = re.compile(r"\+*(exprune|search)[.=]")
_LAYERS = re.compile(r"exprune\.sites=")
_TARGET = re.compile(r"exprune\.(target_\w+|confidence)=(?!null$)")


def print_result(result: Result, console: Console | None = None) -> None:
    """Print the result as two tables: the network, and its sites."""
    console = console or Console(width=None if Console().is_terminal else 120)
    console.print(_summary(result))
    if result.target and "confidence" in result.target:
        console.print(f"promise: {promise_line(result.target, result.flops.unit)}", highlight=False)
    if result.heuristic != "none":
        console.print(_sites(result))
        for row in result.sites:
            if row["activation"] and not row["eligible"]:
                console.print(f"{row['name']} ran dense: {row['reason']}", highlight=False)
        if others := [row["name"] for row in result.sites if not row["activation"] and not row["outputs"]]:
            console.print(f"{len(others)} more layers feed no activation: {_some(others)}", highlight=False)
    if result.flops.uncounted:
        calls = ", ".join(f"{name} ({count} calls)" for name, count in result.flops.uncounted.items())
        console.print(f"not counted, as no FLOP formula is known: {calls}", highlight=False)
    console.print("FLOPs are counted; this simulation does not run faster.", highlight=False)
    if result.engine:
        console.print(_engine(result.engine), highlight=False)


def print_next(result: Result, console: Console | None = None) -> None:
    """After one of the paper's tests, print the command that evaluates optimal stopping on the same network."""
    if result.heuristic in ("Threshold", "StatsTest"):
        console = console or Console()
        command, target = optimal_command(result.command)
        console.print(f"next, optimal stopping, with the setting found for {target}:", highlight=False, soft_wrap=True)
        console.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)


def optimal_command(command: str) -> tuple[str, str]:
    """Return the command that evaluates the same network with optimal stopping, and its target in words.

    A target of the given command is kept; without one it is a drop of 1 point.
    """
    words = shlex.split(command)
    rest = [word for word in words if not _HEURISTIC.match(word)]
    layers, targets = ([word for word in words if kind.match(word)] for kind in (_LAYERS, _TARGET))
    if not any(word.startswith("exprune.target") for word in targets):
        targets.append("exprune.target_drop=1")
    setting, _, value = next(word for word in targets if word.startswith("exprune.target")).partition("=")
    following = shlex.join([*rest, "exprune=optimal", *layers, *targets])
    if setting == "exprune.target_drop":
        return following, f"a drop of at most {value} point{'' if value == '1' else 's'}"
    return following, f"{setting}={value}"


def promise_line(promise: dict[str, Any], unit: str) -> str:
    """A promise as a sentence."""
    return (
        f"with {promise['confidence']:.4g} probability over the {promise['inputs']:,} validation {unit}s, the drop on "
        f"unseen ones like them is at most {promise['target_drop']:g} points (bound {promise['bound']:.2f}; "
        f"{promise['test']})"
    )


def _engine(row: dict[str, Any]) -> str:
    """One line on the inputs that were run through the kernels."""
    speed, (low, high) = row["tokens_per_second"], row["interval"]
    return (
        f"{row['tokens']:,} tokens through the kernels, one at a time on {row['threads']} threads: "
        f"{speed['pruned']:.1f} tokens/s pruned, {speed['dense']:.1f} dense; metric {row['pruned']:.4f}, dense "
        f"{row['dense']:.4f}, "
        f"drop {row['drop']:+.2f} points [{low:+.2f}, {high:+.2f}]; {row['agreement']:.2%} predicted as simulated"
    )


def _summary(result: Result) -> Table:
    metric, flops = result.metric, result.flops
    table = Table(
        title=f"{result.model} on {result.data} ({result.split} split, {result.inputs:,} inputs), {_setting(result)}",
        title_justify="left",
    )
    for column in ("", "dense", "pruned", "difference", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    if result.sparsity:
        table.caption = f"{result.sparsity:.2%} of the weights removed statically; {flops.unpruned:,.0f} FLOPs before"
        table.caption_justify = "left"
    low, high = metric.interval
    table.add_row(
        metric.name,
        f"{metric.dense:.4f}",
        f"{metric.pruned:.4f}",
        f"drop {metric.drop:+.2f} points",
        f"[{low:+.2f}, {high:+.2f}]",
    )
    if of := result.divergence:
        spread = f"median {of['median']:.2g}, 99 % {of['most']:.2g}, largest {of['largest']:.2g}"
        table.add_row("KL(dense || pruned)", "", f"{of['mean']:.4g}", spread, f"[{of['low']:.3g}, {of['high']:.3g}]")
        table.add_row("the same most likely token", "", f"{of['same']:.2%}", "", "")
    for name, both in result.metrics.items():
        table.add_row(name, f"{both['dense']:.4f}", f"{both['pruned']:.4f}", "", "")
    scopes = {f"FLOPs per {flops.unit}": asdict(flops)}
    if flops.paper_scope["dense"] != flops.dense:
        scopes["in the published scope"] = flops.paper_scope
    if flops.without_zero_terms:
        scopes["without zero terms of its sites"] = flops.without_zero_terms
    for name, scope in scopes.items():
        table.add_row(name, f"{scope['dense']:,.0f}", f"{scope['pruned']:,.0f}", f"{scope['saved']:.2%} saved", "")
    if flops.zero_skipping:
        skippable = (f"{flops.zero_skipping[side]:,.0f}" for side in ("dense", "pruned"))
        table.add_row("zeros in fc2, skippable", *skippable, "", "")
    if result.head:
        of_head = result.head["flops"]
        saved = f"{of_head['saved']:.2%} saved, {result.head['changed'] / result.head['rows']:.3%} changed"
        table.add_row(f"head per {flops.unit}", f"{of_head['dense']:,.0f}", f"{of_head['pruned']:,.0f}", saved, "")
    return table


def _setting(result: Result) -> str:
    """The heuristic and its settings; if they were found for a target, also what they reached on validation."""
    knobs = {name: getattr(result, name) for name in ("tau", "lam", "n")}
    named = [f"{name} {_short(knob)}" for name, knob in knobs.items() if knob is not None]
    if result.target:
        (target, value), drop = next(iter(result.target.items())), result.target["valid_drop"]
        named.append(f"found for {target} {value} (on validation: drop {drop:+.2f} points)")
    return ", ".join([result.heuristic, *named])


def _short(knob: Any) -> str:
    return f"{knob:.4g}" if isinstance(knob, float) else str(knob)


def _sites(result: Result) -> Table:
    table = Table(title="share of each site's neurons", title_justify="left")
    for column in ("site", "terms", "weights left", "tau", "pruned", "negative (oracle)", "wrongly pruned"):
        if (column != "weights left" or result.sparsity) and (column != "tau" or result.tau is not None):
            table.add_column(column, justify="left" if column == "site" else "right")
    for row in result.sites:
        if row["outputs"]:
            pruned, negative, wrong = (row[key] / row["outputs"] for key in ("pruned", "negative", "wrong"))
            cells = {
                "site": row["name"],
                "terms": str(row["terms"]),
                "weights left": f"{row['weights_left'] / row['weights']:.1%}",
                "tau": _short(row["tau"]),
                "pruned": f"{pruned:.1%}",
                "negative (oracle)": f"{negative:.1%}",
                "wrongly pruned": f"{wrong:.2%}",
            }
            table.add_row(*(cells[str(column.header)] for column in table.columns))
    return table


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@only_tracks()
def log_result(run: Any | None, result: Result, folder: Path) -> None:
    """Log metric and FLOPs as scalars, the sites as a table, and result.json as a file."""
    if run is None:
        return
    values, engine = asdict(result), result.engine or {}
    run.log(
        {
            **{f"metric/{key}": value for key, value in values["metric"].items() if isinstance(value, float)},
            **{f"flops/{key}": value for key, value in values["flops"].items() if isinstance(value, float)},
            **{f"engine/{key}": value for key, value in engine.items() if isinstance(value, float)},
            **{f"engine/{key}_tokens_per_second": value for key, value in engine.get("tokens_per_second", {}).items()},
        }
    )
    columns = ["name", "kind", "eligible", "reason", "terms", "tau", "outputs", "pruned", "negative", "wrong"]
    rows = [[row[column] for column in columns] for row in result.sites]
    run.log({"sites": wandb.Table(columns=list[str | int](columns), data=rows)})
    shutil.copy(folder / "result.json", run.dir)  # W&B uploads the files in this folder
