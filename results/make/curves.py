"""The measured points of a network as one curve per test, for plots in the documents."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from networks import NETWORKS, RESULTS

OURS, MAGNITUDE, ORACLE = "optimal, each input's order", "small inputs left out", "oracle"
SEARCHED = "the paper's tests, searched"
# In the order of the legend. The paper's tests are blue, ours orange and red, the others grey and green.
COLOURS = {
    "Threshold, one tau": "#9ecae1",
    "StatsTest, one tau": "#6baed6",
    SEARCHED: "#2171b5",
    "calibrated, layer's order": "#fdbf6f",
    "optimal, layer's order": "#ff7f00",
    "optimal, each neuron's order": "#fb9a99",
    "calibrated, each input's order": "#b15928",
    OURS: "#d62728",
    MAGNITUDE: "#33a02c",
    ORACLE: "#555555",
}
_ORDERS = {"layer": "layer's order", "neuron": "each neuron's order", "input": "each input's order"}


@dataclass(frozen=True)
class Curve:
    """Points sorted by savings. saved: percent of the FLOPs; change, low, high: points of the metric."""

    name: str
    points: pd.DataFrame


def networks() -> list[str]:
    return list(NETWORKS)


def curves(network: str) -> list[Curve]:
    """Return all measured curves of a network with ReLUs, on its test split."""
    found = {curve.name: curve for curve in _all(network)}
    return [found[name] for name in COLOURS if name in found]


def drawn(network: str) -> dict[str, Any]:
    """Return an interactive plot of a network's curves, as plotly's JSON."""
    data = []
    for curve in curves(network):
        points = curve.points
        data.append(
            {
                "name": curve.name,
                "x": points["saved"].tolist(),
                "y": points["change"].tolist(),
                "error_y": {
                    "array": (points["high"] - points["change"]).clip(lower=0).tolist(),
                    "arrayminus": (points["change"] - points["low"]).clip(lower=0).tolist(),
                    "thickness": 1,
                },
                "text": points["setting"].tolist(),
                "hovertemplate": "%{x:.1f} % saved, change %{y:+.2f} points<br>%{text}",
                "mode": "markers" if curve.name == ORACLE else "lines+markers",
                "marker": {"symbol": "star", "size": 14} if curve.name == ORACLE else {},
                "line": {"color": COLOURS[curve.name], "width": 3 if curve.name in (SEARCHED, OURS) else 1.5},
                "visible": True if "one tau" not in curve.name else "legendonly",
            }
        )
    shown = pd.concat(curve.points for curve in curves(network) if "one tau" not in curve.name)
    ends = [min(-1.5, shown["change"].min() - 0.4), max(0.8, shown["change"].max() + 0.4)]
    point = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": -1, "y1": -1}
    layout = {
        "xaxis": {"title": {"text": "FLOPs saved, %"}, "zeroline": False},
        "yaxis": {"title": {"text": "change of the metric, points"}, "range": ends},
        "shapes": [point | {"line": {"dash": "dash", "width": 1, "color": "grey"}}],
        "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "y": -0.2},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _all(network: str) -> Iterator[Curve]:
    one_tau = _read(network, "one_tau")
    if "static" in network:
        one_tau = one_tau[one_tau["sparsity"] == one_tau["sparsity"].max()]
    one_tau = one_tau[one_tau["site_selection"].isna() & (one_tau["saved"] > 0)]
    for test in ("Threshold", "StatsTest"):
        yield _curve(f"{test}, one tau", one_tau[one_tau["heuristic"] == test])
    searched = pd.concat(_read(network, f"search_{test}_front") for test in ("threshold", "stats_test"))
    yield _curve(SEARCHED, _best_on_validation(searched))
    beyond, by_input = _read(network, "beyond"), _read(network, "input_order")
    by_input = by_input[by_input["scope"] != "all"]
    for table in (beyond, by_input):
        for heuristic in ("Calibrated", "Optimal"):
            for order, rows in table[table["heuristic"] == heuristic].groupby("order"):
                best = rows if table is beyond else _best_on_validation(rows)
                yield _curve(f"{heuristic.lower()}, {_ORDERS[order]}", best)
    yield _curve(MAGNITUDE, by_input[by_input["heuristic"] == "Magnitude"])
    yield _curve(ORACLE, pd.concat((beyond, by_input)).query("heuristic == 'Oracle'"))


def _read(network: str, name: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / network / f"{name}.csv")
    if "valid_drop" not in table and "target" in table:
        targets = table["target"].map(lambda text: json.loads(text) if isinstance(text, str) else {})
        table["valid_drop"] = targets.map(lambda target: target.get("valid_drop"))
        table["valid_saved_percent"] = targets.map(lambda target: 100 * target.get("valid_saved", float("nan")))
    change = {"change": -table["drop_points"], "low": -table["drop_high"], "high": -table["drop_low"]}
    return table.assign(saved=table[NETWORKS[network][1]], setting=table.apply(_setting, axis=1), **change)


def _best_on_validation(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that no other point beats on the validation split, which is used to choose settings."""
    drop, saved = points["valid_drop"].to_numpy(), points["valid_saved_percent"].to_numpy()
    beaten = ((drop[None] <= drop[:, None]) & (saved[None] > saved[:, None])).any(1)
    return points[~beaten]


def _curve(name: str, points: pd.DataFrame) -> Curve:
    columns = ["saved", "change", "low", "high", "setting"]
    return Curve(name, points.sort_values("saved")[columns].reset_index(drop=True))


def _setting(row: pd.Series) -> str:
    if row["heuristic"] == "Oracle":
        return "stops what the ReLU sets to 0"
    knob = "lam" if row["heuristic"] == "Optimal" else "tau"
    value = row.get(knob)
    predicted = ", predicted" if row["heuristic"] == "Optimal" and row.get("predict") is True else ""
    searched = "a tau for each layer" if pd.isna(value) else f"{knob} {float(value):.3g}"
    return f"{row['heuristic']}, {searched}{predicted}"
