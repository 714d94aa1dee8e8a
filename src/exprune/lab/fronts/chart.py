"""Interactive charts of fronts for W&B: the metric against FLOPs as a share of the dense network's."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd
import wandb
from plotly import graph_objects as go
from plotly.colors import qualitative

from exprune.lab.fronts.pareto import CURVE, NETWORK, PANEL, curve_label, network_label
from exprune.lab.tracking import only_tracks

_SYMBOLS = ("circle", "square", "triangle-up", "cross", "x")


def front_charts(results: pd.DataFrame) -> dict[str, go.Figure]:
    """One chart per data set and split, by name, for a table of `exprune.lab.fronts.pareto.tabulate`.

    Each network has a colour, its dense baseline, and a line one point below it. Each curve has a symbol. The front is
    drawn as a line, and dominated points are faint.
    """
    return {f"{data}-{split}-{metric}": _chart(rows) for (data, split, metric), rows in results.groupby(PANEL)}


def _chart(rows: pd.DataFrame) -> go.Figure:
    data, split, metric = (rows[name].iloc[0] for name in PANEL)
    share = 1 - rows["saved_percent"] / 100
    ends = [min(share.min(), 1.0), max(share.max(), 1.0)]
    figure = go.Figure()
    for (_, network), color in zip(rows.groupby(NETWORK), itertools.cycle(qualitative.Plotly), strict=False):
        first = network.iloc[0]
        name, dense = network_label(first), float(first["dense"])
        style = {"legendgroup": name, "marker_color": color, "line_color": color}
        star = {"symbol": "star-diamond", "size": 13, "color": color}
        figure.add_scatter(x=[1.0], y=[dense], name=f"{name}, dense", mode="markers", marker=star, legendgroup=name)
        below, dash = [dense - 0.01] * 2, {"color": color, "dash": "dash"}
        figure.add_scatter(x=ends, y=below, name=f"{name}, dense - 1 point", mode="lines", line=dash, legendgroup=name)
        curves = network[network["heuristic"] != "none"].groupby(CURVE)
        for (_, curve), symbol in zip(curves, itertools.cycle(_SYMBOLS), strict=False):
            for on_front, points in curve.groupby("front"):
                name = curve_label(curve) + (", front" if on_front else "")
                _add_points(figure, points, bool(on_front), name=name, marker_symbol=symbol, **style)
    figure.update_layout(
        title=f"{data}, {split} split",
        xaxis_title="FLOPs / FLOPs of the dense network",
        yaxis_title=f"{metric} (bars: 95 % interval of its difference from dense)",
        template="plotly_white",
    )
    return figure


def _add_points(figure: go.Figure, points: pd.DataFrame, on_front: bool, **style: str) -> None:
    # Lists throughout: Plotly packs arrays into a binary form that older readers of its JSON do not understand.
    drop, low, high = (points[name] for name in ("drop_points", "drop_low", "drop_high"))
    figure.add_scatter(
        x=(1 - points["saved_percent"] / 100).tolist(),
        y=points["pruned"].tolist(),
        error_y={
            "array": ((drop - low).clip(lower=0) / 100).tolist(),
            "arrayminus": ((high - drop).clip(lower=0) / 100).tolist(),
            "thickness": 1,
        },
        mode="lines+markers" if on_front else "markers",
        opacity=1.0 if on_front else 0.4,
        text=[_hover(row) for _, row in points.iterrows()],
        hoverinfo="text",
        **style,
    )


def _hover(row: pd.Series) -> str:
    return (
        f"tau {row['tau']}, n {row['n']}<br>{row['metric']} {row['pruned']:.4f}, drop {row['drop_points']:+.2f} points "
        f"[{row['drop_low']:+.2f}, {row['drop_high']:+.2f}]<br>{row['saved_percent']:.2f} % of the FLOPs saved"
    )


@only_tracks()
def log_front(run: Any | None, results: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> None:
    """Log results of `tabulate` as charts, with the table of their front, and further tables.

    The charts are Plotly's. They are stored in the run's files, so that ``wandb sync`` uploads them with an offline
    run.
    """
    if run is None:
        return
    charts = {f"front/{name}": wandb.Plotly(figure) for name, figure in front_charts(results).items()}
    tables = {"front/table": results[results["front"]], **tables}
    run.log(charts | {name: _table(table) for name, table in tables.items()})


def _table(table: pd.DataFrame) -> wandb.Table:
    """Convert to a W&B table, which only supports numbers, strings and booleans; times become strings."""
    plain = table.apply(lambda column: column if column.dtype.kind in "biuf" else column.astype(str))
    return wandb.Table(dataframe=plain)
