"""Draws what a saving costs: fronts.png of every network, and front.png, four curves for README.

    python results/fronts.py

From the tables beside this file; nothing is measured.
"""

from pathlib import Path

from curves import COLOURS, MAGNITUDE, ORACLE, OURS, SEARCHED, Curve, curves
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import NETWORKS

from exprune.files import write_whole

HERE = Path(__file__).parent
README = "vgg11_bn"
# What the four curves of README are called there, and where: percent saved, points.
LABELS = {
    SEARCHED: ("the paper's tests,\nsearched", (1.5, -1.3)),
    MAGNITUDE: ("small inputs\nleft out", (51, -1.3)),
    OURS: ("optimal stopping\n(ours)", (56.5, -0.65)),
    ORACLE: ("oracle: told which outputs are 0", (49, 0.4)),
}


def main() -> None:
    for network in NETWORKS:
        _written(_whole(network), HERE / f"{network}_fronts.png")
    _written(_four(), HERE / "front.png")


def _four() -> Figure:
    """Four curves with their names beside them, large enough to be read at half its size."""
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


def _written(figure: Figure, path: Path) -> None:
    write_whole(path, lambda partial: figure.savefig(partial, dpi=110, format="png"))


if __name__ == "__main__":
    main()
