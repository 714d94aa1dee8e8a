"""Draw the figures of README and of the results pages from the measured tables; nothing is measured here.

python results/make/figures.py
"""

import json

import pandas as pd
from curves import COLOURS, MAGNITUDE, ORACLE, OURS, SEARCHED, Curve, curves
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import ACTIVATIONS, INTO, NETWORKS, RESULTS, whole

from exprune.files import write_whole

README = "vgg11_bn"
# Labels of the four curves in README, and their positions: percent saved, change in points.
LABELS = {
    SEARCHED: ("the paper's tests,\nsearched", (1.5, -1.3)),
    MAGNITUDE: ("small inputs\nleft out", (51, -1.3)),
    OURS: ("optimal stopping\n(ours)", (56.5, -0.65)),
    ORACLE: ("oracle: told which outputs are 0", (49, 0.4)),
}


def main() -> None:
    for network in NETWORKS:
        _written(_whole(network), f"{network}/fronts.png")
    _written(_four(), "front.png")
    _written(_parts(), "input_order.png")
    _written(_without_relu(), "without_relu.png")
    _written(_decoding(), "decoding/decoding.png")


def _four() -> Figure:
    """Plot four labelled curves, legible at half the size."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    found = {curve.name: curve for curve in curves(README)}
    for name, (label, place) in LABELS.items():
        _draw(axes, found[name], bold=True)
        axes.text(*place, label, color=COLOURS[name], fontsize=14, fontweight="bold", va="center")
    _dress(axes, 14)
    axes.set(xlim=(0, 90), ylim=(-2.05, 0.75), ylabel="change of accuracy (points)")
    return figure


def _whole(network: str) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    found = curves(network)
    for curve in found:
        _draw(axes, curve, bold=curve.name in LABELS)
    _dress(axes, 11)
    lowest = min(curve.points["change"].min() for curve in found if "one tau" not in curve.name)
    axes.set(title=NETWORKS[network][0], ylabel="change of the metric (points)", ylim=(min(-1.5, lowest - 0.5), None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _parts() -> Figure:
    """Plot the savings at equal damage, with and without each part of the method."""
    shown = {
        "order of each input, 7 stages from 8 terms on": "each input's order",
        "with predictions": "... with predictions",
        "without looking ahead": "... without looking ahead",
        "all neurons of equal weight": "... all neurons of equal weight",
        "5 stages from 32 terms on": "... stages from 32 terms on",
        "order of the layer, 7 stages from 8 terms on": "the layer's order",
        "small inputs left out (magnitude)": MAGNITUDE,
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    names = ("gnn", "vgg11_bn", "resnet18")
    for axes, network in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        table = pd.read_csv(RESULTS / network / "input_order_ablation.csv")
        saved = table.set_index(table["variant"].str.strip()).loc[list(shown), "saved_percent_at_0.01"]
        colours = [COLOURS[OURS]] * 5 + [COLOURS["optimal, layer's order"], COLOURS[MAGNITUDE]]
        bars = axes.barh(list(shown.values()), saved, color=colours)
        axes.bar_label(bars, fmt="%.0f", padding=2)
        axes.set(title=whole(network), xlim=(0, 100), xlabel="FLOPs saved (%) at 0.01 nats")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure


def _without_relu() -> Figure:
    """Plot the savings of networks with other activations, against the change of their predictions."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    names = ("gelu", "llama", "rxnmapper")
    for axes, network in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        table = pd.read_csv(RESULTS / network / "divergence.csv")
        for row in table[table["layers"] == "every layer"].to_dict("records"):
            ours = row["test"].startswith("Optimal")
            name, colour = ("optimal", COLOURS[OURS]) if ours else (MAGNITUDE, COLOURS[MAGNITUDE])
            axes.plot(json.loads(row["saved_percent"]), json.loads(row["kl"]), marker="o", color=colour, label=name)
        axes.set(title=ACTIVATIONS[network], yscale="log", ylim=(1e-3, 0.2), xlim=(0, 60))
        axes.set_xlabel("FLOPs of the network saved (%)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("KL divergence (nats)")
    figure.axes[0].legend(frameon=False)
    return figure


def _decoding() -> Figure:
    """Plot the tokens per second on one thread, for each kind of decoding."""
    arms = ("eager", "dense", "zeros", "stopped", "head")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    machines = {"AMD EPYC": "epyc", "Intel Xeon": "xeon"}
    for axes, (title, folder) in zip(figure.subplots(1, 2, sharey=True), machines.items(), strict=True):
        run = json.loads((RESULTS / "decoding" / folder / "opt_wide_1.json").read_text())
        speeds = [run["arms"][arm] for arm in arms]
        bars = axes.barh(arms, speeds, color=["#bbbbbb", "#bbbbbb", "#fdbf6f", COLOURS[OURS], "#a50f15"])
        axes.bar_label(bars, fmt="%.0f", padding=2)
        axes.set(title=f"{title}, one thread, float32", xlabel="tokens per second", xlim=(0, max(speeds) * 1.15))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure


def _draw(axes: Axes, curve: Curve, bold: bool) -> None:
    points, colour = curve.points, COLOURS[curve.name]
    error = [(points["change"] - points["low"]).clip(lower=0), (points["high"] - points["change"]).clip(lower=0)]
    style = {"marker": "*", "linestyle": "none", "markersize": 15} if curve.name == ORACLE else {"marker": "o"}
    width = {"linewidth": 2.5, "zorder": 3} if bold else {"linewidth": 1.2, "markersize": 4}
    axes.errorbar(
        points["saved"], points["change"], error, color=colour, capsize=2, elinewidth=1, label=curve.name,
        **(width | style),
    )  # fmt: skip


def _dress(axes: Axes, size: int) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(-1, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("FLOPs saved (% of the dense network's)", fontsize=size)
    axes.yaxis.label.set_size(size)
    axes.tick_params(labelsize=size - 1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _written(figure: Figure, name: str) -> None:
    write_whole(INTO / name, lambda partial: figure.savefig(partial, dpi=110, format="png"))


if __name__ == "__main__":
    main()
