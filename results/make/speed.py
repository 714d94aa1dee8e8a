"""Tables of decoding times, from the benchmarks' output in results/decoding."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
from networks import RESULTS
from table_lines import heading, line

RUNS = RESULTS / "decoding"  # a folder a processor
ARMS = ("eager", "eager, stopped", "dense", "zeros", "stopped", "head")


def decoding() -> str:
    """One row per run of benchmarks/decode.py: tokens per second, and as a multiple of the dense loop's."""
    columns = ("", "", *ARMS, "change of the accuracy, points: stopped, head")
    lines = heading(*columns)
    for run in _runs():
        where = f"{run['processor']}, {_threads(run)}, {run['dtype']}"
        cells = [_speed(run, arm) for arm in ARMS]
        lost = ", ".join(f"{0 - run['drops'][arm]:+.2f}" for arm in ("stopped", "head")) if "drops" in run else ""
        lines.append(line(run["label"], where, *cells, lost))
    commands = ";\n".join(dict.fromkeys(f"`{run['command']}`" for run in _runs()))
    return "\n".join(lines) + "\n\n" + commands + ".\n"


def shares() -> str:
    """For the same runs, what each arm reads of the weights, how fast, and where the time of a token goes."""
    columns = ("", "arm", "weights read", "GB/s", "memory", "projections", "fc1", "fc2", "head", "rest")
    lines = heading(*columns)
    for run in _runs():
        for arm in ARMS[2:]:
            if arm in run["of_arm"]:
                of = run["of_arm"][arm]
                parts = (f"{100 * of['parts'][part]:.0f} %" for part in columns[5:])
                memory = f"{100 * of['more_memory']:+.1f} %"
                network, _, knob = run["label"].rpartition(", ")
                name = f"{network.partition(' on ')[0]}, {knob.partition(' (')[0]}, {_threads(run)}, {run['dtype']}"
                name += f", {run['processor']}"
                lines.append(line(name, arm, f"{100 * of['read']:.0f} %", f"{of['gb_per_second']:.1f}", memory, *parts))
    return "\n".join(lines) + "\n"


def kernels() -> str:
    """The kernels alone: the speed-up over torch, by the share of neurons that go on."""
    table = pd.concat([pd.read_csv(path) for path in sorted(RUNS.glob("*/kernels.csv"))])
    alive = sorted(table["alive"].unique())
    lines = heading("processor, threads", "hidden size", "dtype", *(f"{100 * share:.0f} % left" for share in alive))
    for (where, threads, hidden, dtype), rows in table.groupby(["processor", "threads", "hidden", "dtype"], sort=False):
        cells = (
            f"{row['over_torch']:.1f} of {row['bound']:.1f}" for row in rows.sort_values("alive").to_dict("records")
        )
        lines.append(line(f"{where}, {threads}", hidden, dtype, *cells))
    return "\n".join(lines) + "\n\n`python benchmarks/ffn.py --hidden 1024 2048`.\n"


def _runs() -> Iterator[dict[str, Any]]:
    for path in sorted(RUNS.glob("*/*.json")):
        yield json.loads(path.read_text())


def _speed(run: dict[str, Any], arm: str) -> str:
    if arm not in run["arms"]:
        return ""
    of = run["of_arm"][arm]
    low, high = of["interval"]
    ratio = "" if arm == "dense" else f" ({of['ratio']:.2f} x [{low:.2f}, {high:.2f}])"
    return f"{run['arms'][arm]:.1f}{ratio}"


def _threads(run: dict[str, Any]) -> str:
    return f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
