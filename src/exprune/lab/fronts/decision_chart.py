"""Plot a site's decision table: where its neurons stop, and what they output.

    python -m exprune.lab.fronts.decision_chart TABLES.safetensors SITE --plot decisions.png

Tables are saved by `exprune.core.save_tables`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exprune.core import DecisionTable, SettingError, load_tables
from exprune.core.decisions.table import WIDTHS

_SHARES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)  # quantiles over the neurons


def draw(table: DecisionTable, name: str, path: Path) -> None:
    """Save the chart of a site's table.

    For each stage it shows the median neuron's bounds in a row of usual width, with a band of 90 % of the neurons. If
    the expected pre-activation is below a bound, the neuron stops. Without an activation, only the row's width matters.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    if table.narrow is not None:
        _band(axes, table.narrow, "C0", "stops with its prediction below")
        axes.set_ylabel("norm of the row's remaining terms / usual norm")
        axes.set_yscale("log")
    else:
        assert table.below is not None  # it is set unless `narrow` is
        usual = 0 if len(table.below) == 1 else int((WIDTHS - 1).abs().argmin())
        what = "its prediction" if table.predicts else "0"
        _band(axes, table.below[usual], "C0", f"stops with {what} below")
        if table.zero_below is not None:
            _band(axes, table.zero_below[usual], "C3", "stops with 0 below")
        axes.set_ylabel("expected pre-activation")
    axes.set_xticks(range(len(table.stages)), [str(n) for n in table.stages])
    axes.set_xlabel("terms evaluated")
    axes.set_title(name)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _of_neurons(values: Tensor) -> list[Tensor]:
    """Quantiles over the outputs of ``values`` (stages, outputs); infinite values are placed beyond all finite ones."""
    finite = values[values.isfinite()] if values.isfinite().any() else torch.zeros(1)
    room = float(finite.max() - finite.min()) or 1.0
    limited = values.double().clamp(float(finite.min()) - room / 10, float(finite.max()) + room / 10)
    return list(torch.quantile(limited, _SHARES, dim=1))


def _band(axes: Any, values: Tensor, color: str, label: str) -> None:
    low, middle, high = _of_neurons(values)
    axes.fill_between(range(len(values)), low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(middle, color=color, marker="o", markersize=4, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m exprune.lab.fronts.decision_chart", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("tables", type=Path, help="file with decision tables")
    parser.add_argument("site", help="name of the site")
    parser.add_argument("--plot", type=Path, default=Path("decisions.png"), help="file to write the chart to")
    args = parser.parse_args()
    try:
        tables = load_tables(args.tables)
        if args.site not in tables:
            raise SettingError(f"{args.site}: no such site; there are {', '.join(tables)}")
        draw(tables[args.site], args.site, args.plot)
    except SettingError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
