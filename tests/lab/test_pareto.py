"""Tables and plots of many results."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from exprune.core.errors import SettingError
from exprune.lab.fronts import pareto
from exprune.lab.fronts.chart import front_charts
from tests.cli import TINY, CommandLine


def test_a_sweep_becomes_a_table_and_a_plot(command: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = command("evaluate.py", "-m", "model=gnn", "exprune.tau=0.1,0.3", "logger=none", "hydra.sweep.dir=s", *TINY)
    assert sweep.code == 0, sweep.err
    csv, plot = sweep.folder / "out" / "table.csv", sweep.folder / "out" / "front.png"
    pareto.main([str(sweep.folder / "s"), "--csv", str(csv), "--plot", str(plot)])
    assert "StatsTest" in capfd.readouterr().out
    table = pd.read_csv(csv)
    assert sorted(table["tau"]) == [0.1, 0.3]
    assert table["saved_percent"].is_monotonic_increasing
    assert (table["drop_low"] <= table["drop_high"]).all()
    assert not table["checkpoint"].str.contains("/").any()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in csv.parent.iterdir()) == ["front.png", "table.csv"]


def test_results_that_do_not_belong_together(command: CommandLine) -> None:
    for split in ("test", "valid"):
        outcome = command("evaluate.py", "model=gnn", f"split={split}", "logger=none", *TINY)
        assert outcome.code == 0, outcome.err
    with pytest.raises(SettingError, match="different split"):
        pareto.gather([outcome.folder])


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_no_results(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(SettingError, match=r"result\.json"):
        pareto.gather([tmp_path])
    with pytest.raises(SystemExit, match="error: "):
        pareto.main([str(tmp_path)])


def result(tau: float, drop: float, saved: float, **other: object) -> dict:
    """Return what a table needs of a result.json, with a dense metric of 0.8."""
    names = ("model", "data", "split", "static", "seed", "checkpoint", "heuristic")
    about = dict(zip(names, ("gnn", "nci", "test", "none", 0, "gnn.safetensors", "StatsTest"), strict=True))
    pruned = 0.8 - drop / 100
    metric = {"name": "roc_auc", "dense": 0.8, "pruned": pruned, "drop": drop, "interval": (drop - 1, drop + 2)}
    metric |= {"dense_interval": (0.7, 0.9), "pruned_interval": (pruned - 0.1, pruned + 0.1)}
    flops = {"dense": 1000.0, "pruned": 1000 * (1 - saved), "saved": saved, "paper_scope": {"saved": saved}}
    rest = {"inputs": 10, "sparsity": 0.0, "sites": [], "n": 32, "command": f"python evaluate.py exprune.tau={tau}"}
    return about | rest | {"tau": tau, "metric": metric, "flops": flops} | other


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 5), st.integers(0, 6), st.sampled_from(["gnn", "opt"])), min_size=1))
def test_front_is_what_nothing_of_the_same_network_beats(points: list[tuple[int, int, str]]) -> None:
    results = [result(k, drop, saved / 10, model=model) for k, (drop, saved, model) in enumerate(points)]
    table = pareto.tabulate([*results, result(99, 0, 0.0, heuristic="none")])
    for k, (drop, saved, model) in enumerate(points):
        others = [(d, s) for d, s, m in points if m == model and (d, s) != (drop, saved)]
        beaten = any(d <= drop and s >= saved for d, s in others)
        assert table.loc[table["tau"] == str(k), "front"].item() == (not beaten)
    assert not table.loc[table["heuristic"] == "none", "front"].any()


def test_the_interactive_chart_marks_dense_and_one_point_below() -> None:
    """One chart per data set; FLOPs are shares of the dense network's; each network has its own baseline."""
    results = [
        result(0.1, 0.5, 0.2),
        result(0.2, 2.0, 0.1),  # beaten
        result(0.3, 1.0, 0.4),
        result(0.1, 0.5, 0.2, model="opt", data="stdlib", heuristic="Threshold"),
        result(0.2, 0.5, -0.5, model="gat", heuristic="none"),
    ]
    charts = front_charts(pareto.tabulate(results))
    assert set(charts) == {"nci-test-roc_auc", "stdlib-test-roc_auc"}
    traces = {trace["name"]: trace for trace in charts["nci-test-roc_auc"].to_plotly_json()["data"]}
    assert (traces["gnn, dense"]["x"], traces["gnn, dense"]["y"]) == ([1.0], [0.8])
    below = traces["gnn, dense - 1 point"]
    assert below["y"] == pytest.approx([0.79, 0.79]) and min(below["x"]) == 0.6 and below["line"]["dash"] == "dash"
    front = traces["gnn, StatsTest, 0 sites, front"]
    assert front["x"] == pytest.approx([0.8, 0.6]) and front["y"] == pytest.approx([0.795, 0.79])
    assert "lines" in front["mode"] and isinstance(front["x"], list)
    assert front["error_y"]["array"] == pytest.approx([0.01, 0.01])  # a smaller drop is a better metric
    assert front["error_y"]["arrayminus"] == pytest.approx([0.02, 0.02])
    assert "tau 0.3" in front["text"][1] and "40.00 %" in front["text"][1]
    assert traces["gnn, StatsTest, 0 sites"]["x"] == pytest.approx([0.9])
    assert "gat, dense" in traces and "opt, dense" not in traces


def test_tables_go_into_one_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables of separate measurements, read again, give the same table as all results at once."""
    optimal = result(None, 1.0, 0.4, heuristic="Optimal", lam=1.25e-9)
    parts = {"searched": [result(0.1, 0.5, 0.2)], "beyond": [optimal]}
    for name, results in parts.items():
        pareto.tabulate(results).to_csv(tmp_path / f"{name}.csv", index=False)
    files = [tmp_path / f"{name}.csv" for name in parts]
    whole = pareto.tabulate([one for results in parts.values() for one in results])
    shown = ["heuristic", "saved_percent", "drop_points", "drop_low", "drop_high", "front", *pareto.CURVE[:4]]
    found = pareto.gather(files).sort_values("saved_percent")[shown].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, whole.sort_values("saved_percent")[shown].reset_index(drop=True))
    pareto.main([*map(str, files), "--plot", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").stat().st_size > 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:5] for line in lines[1:]] == [["StatsTest", "tau", "0.1"], ["Optimal", "lam", "1.25e-09"]]

    pareto.tabulate([result(0.1, 0.5, 0.2, data="stdlib")]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(SettingError, match="different data"):
        pareto.gather([*files, tmp_path / "other.csv"])
    (tmp_path / "trials.csv").write_text("number,values_0\n0,1\n")
    with pytest.raises(SettingError, match=r"trials\.csv: no table of exprune\.lab\.fronts\.pareto: it has no data"):
        pareto.gather([tmp_path / "trials.csv"])
    with pytest.raises(SettingError, match=r"gone\.csv: not a table"):
        pareto.gather([tmp_path / "gone.csv"])


def test_predictions_and_layers_without_a_relu_are_curves_of_their_own(tmp_path: Path) -> None:
    """This also holds next to a table from before these columns existed."""
    optimal = {"heuristic": "Optimal", "order": "input"}
    old = pareto.tabulate([result(0.1, 0.2, 0.3, **optimal)]).drop(columns=["predict", "scope"])
    old.to_csv(tmp_path / "old.csv", index=False)
    new = [
        result(0.2, 0.1, 0.4, predict=False, scope="relu", **optimal),
        result(0.3, 0.3, 0.5, predict=True, scope="relu", **optimal),
        result(0.4, 0.4, 0.6, predict=True, scope="all", **optimal),
    ]
    pareto.tabulate(new).to_csv(tmp_path / "new.csv", index=False)
    table = pareto.gather([tmp_path / "old.csv", tmp_path / "new.csv"])
    labels = {pareto.curve_label(curve): len(curve) for _, curve in table.groupby(pareto.CURVE)}
    of_both = "gnn, Optimal, 0 sites, order input"
    assert labels == {of_both: 2, f"{of_both}, predicted": 1, f"{of_both}, predicted, all layers": 1}


def test_what_a_search_found_is_a_curve_of_its_own() -> None:
    by_site = [result({"a": 0.1, "b": tau}, 0.1, 0.2 + tau) for tau in (0.1, 0.2)]
    table = pareto.tabulate([*by_site, result(0.1, 0.5, 0.2), result(0.2, 0.6, 0.3)])
    axes = Figure().subplots()
    pareto._plot_panel(table, axes, "nci", "test", "roc_auc")
    lines, labels = axes.get_legend_handles_labels()
    assert labels == ["gnn, StatsTest, 0 sites", "gnn, StatsTest, 0 sites, tau by site"]
    assert [line[0].get_xdata().tolist() for line in lines] == [pytest.approx([20, 30]), pytest.approx([30, 40])]


def test_a_curve_is_of_selected_sites_however_many_a_setting_leaves_without_a_test() -> None:
    def sites(*outputs: int | None) -> list[dict]:
        return [{"outputs": count, "pruned": 0, "negative": 0, "wrong": 0} for count in outputs]

    results = [
        result(0.1, 0.5, 0.2, sites=sites(10, 10)),
        result(0.2, 0.4, 0.3, sites=sites(10, None)),
        result(0.2, 0.1, 0.1, sites=sites(10), site_selection=["a"]),
    ]
    table = pareto.tabulate(results)
    assert table["front"].tolist() == [False, True, True]
    axes = Figure().subplots()
    pareto._plot_panel(table, axes, "nci", "test", "roc_auc")
    assert axes.get_legend_handles_labels()[1] == ["gnn, StatsTest, 2 sites", "gnn, StatsTest, 1 sites"]


def test_the_copies_that_wandb_keeps_are_no_results(tmp_path: Path) -> None:
    for folder in ("0", "0/wandb/offline-run-1/files"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "result.json").write_text("{}")
    assert pareto.find_results(tmp_path) == [tmp_path / "0" / "result.json"]
