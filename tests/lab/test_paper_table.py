"""The paper's table: which setting is chosen, on which split, and what the table says about it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from exprune.core.errors import SettingError
from exprune.lab.fronts import paper_table, pareto
from exprune.lab.fronts.paper_table import as_text, read
from tests.cli import ROOT, TINY, CommandLine


def write(folder: Path, split: str, drop: float, saved: float, **other: Any) -> None:
    """Write a ``result.json`` like evaluate.py, with only what the table reads. ``saved`` is in percent."""
    result = {
        "model": "gnn",
        "data": "ogbg_molhiv",
        "split": split,
        "inputs": 4113,
        "static": "none",
        "sparsity": 0.0,
        "seed": 0,
        "checkpoint": "gnn.safetensors",
        "heuristic": "StatsTest",
        "tau": 0.1,
        "n": 32,
        "gain_ratio": 0.5,
        "site_selection": None,
        "metric": {"name": "roc_auc", "dense": 0.8, "drop": drop, "interval": [drop - 0.25, drop + 0.5]},
        "flops": {"saved": saved / 100, "paper_scope": {"saved": other.pop("scope", saved) / 100}},
        "sites": [{"name": "a", "outputs": len(split)}],
        "seconds": {"dense": float(saved)},
        "versions": {},
        "command": f"python evaluate.py split={split}",
    }
    path = folder / f"{len(list(folder.rglob('result.json'))):03d}" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | other))


def table(*sources: Path) -> pd.DataFrame:
    return paper_table.paper_table(read(sources))


def test_validation_chooses_and_test_reports(tmp_path: Path) -> None:
    """tau 0.2 saves most within the limits on test, but not on validation."""
    for tau, (valid, on_test) in {
        0.1: ((0.05, 10), (0.4, 11)),
        0.2: ((1.5, 20), (0.0, 21)),
        0.3: ((1, 5), (0, 6)),
    }.items():
        write(tmp_path, "valid", *valid, tau={"a": tau, "b": 0.0})
        write(tmp_path, "test", *on_test, tau={"a": tau, "b": 0.0})
    chosen = table(tmp_path)
    assert list(chosen["drop_limit"]) == [0.1, 1.0]
    for _, row in chosen.iterrows():
        assert json.loads(row["setting"])["tau"] == {"a": 0.1, "b": 0.0}
        assert (row["saved_percent"], row["drop_points"], row["valid_drop_points"]) == (11, 0.4, 0.05)
        assert (row["drop_low"], row["drop_high"]) == pytest.approx((0.15, 0.9))
        assert row["chosen_on"] == "validation" and row["inputs"] == 4113
        assert (row["reported_saved_percent"], row["reported_drop_points"]) == (21, 0)  # what test itself would choose
    text = as_text(chosen)
    assert list(text["95 % interval"]) == ["[+0.15, +0.90]"] * 2
    assert list(text["chosen on test: saved %"]) == ["21.00"] * 2


def test_test_results_alone_are_said_to_be_optimistic(tmp_path: Path) -> None:
    for tau, drop, saved in ((0.1, 0.1, 10), (0.2, 0.101, 20), (0.3, 1.0, 30), (0.4, 1.01, 40), (0.5, -0.2, 9)):
        write(tmp_path, "test", drop, saved, tau=tau)
    chosen = table(tmp_path)
    assert list(chosen["saved_percent"]) == [10, 30]
    assert set(chosen["chosen_on"]) == {"test (optimistic)"}
    assert list(chosen["published_percent"].str.partition(" ")[0]) == ["10.98-26.3", "21.01-39.05"]


def test_none_within_the_limit(tmp_path: Path) -> None:
    write(tmp_path, "test", 0.7, 30)
    write(tmp_path, "test", 0.7, 30, heuristic="Threshold")
    write(tmp_path, "valid", 0.7, 30, heuristic="Threshold", tau=-1)  # never evaluated on test
    write(tmp_path, "valid", 0.0, 30, heuristic="Calibrated")
    chosen = table(tmp_path).set_index(["heuristic", "drop_limit"])
    assert chosen.loc[("StatsTest", 0.1), "setting"] == "none" and pd.isna(
        chosen.loc[("StatsTest", 0.1), "drop_points"]
    )
    assert chosen.loc[("StatsTest", 1.0), "saved_percent"] == 30
    assert chosen.loc[("Threshold", 1.0), ["setting", "chosen_on"]].tolist() == ["none", "validation"]
    assert (chosen.loc["Calibrated", "setting"] == "none measured on test").all()
    assert list(as_text(table(tmp_path))["saved %"]) == ["none", "none", "none", "30.00", "none", "none"]


def test_any_knob_tells_settings_apart(tmp_path: Path) -> None:
    """This also holds for a setting that this version does not know."""
    for lam, valid, on_test in ((1, 2.0, 0.0), (2, 0.0, 0.5)):
        for split, drop in (("valid", valid), ("test", on_test)):
            write(tmp_path, split, drop, 10 * lam, tau=None, lam=lam)
    assert [json.loads(one)["lam"] for one in table(tmp_path)["setting"]] == [2, 2]


def test_a_knob_found_for_a_target_was_chosen_on_validation(tmp_path: Path) -> None:
    for lam, (valid, on_test) in {1e-12: (0.08, 0.3), 1e-11: (0.9, -0.5)}.items():
        target = {"target_drop": 0.1, "valid_drop": valid, "valid_saved": 1e10 * lam}
        write(tmp_path, "test", on_test, 2e12 * lam, tau=None, lam=lam, target=target)
    # The same once more, as a result of its own.
    write(tmp_path, "valid", valid + 1e-7, 1e12 * lam, tau=None, lam=lam, target=target)
    chosen = table(tmp_path)
    assert [json.loads(one)["lam"] for one in chosen["setting"]] == [1e-12, 1e-11]
    assert chosen["drop_points"].tolist() == [0.3, -0.5] and chosen["valid_drop_points"].tolist() == [0.08, 0.9]
    assert set(chosen["chosen_on"]) == {"validation"}


@pytest.mark.parametrize(
    "other",
    [
        {"data": "nci"},
        {"model": "opt"},
        {"seed": 1},
        {"static": "magnitude", "sparsity": 0.98},
        {"heuristic": "Threshold"},
        {"site_selection": ["a.*"]},
        {"checkpoint": "another.safetensors"},
    ],
    ids=str,
)
def test_what_is_never_mixed(tmp_path: Path, other: dict) -> None:
    write(tmp_path, "test", 0.0, 10)
    write(tmp_path, "test", 0.0, 20, **other)
    assert sorted(table(tmp_path)["saved_percent"]) == [10, 10, 20, 20]
    text = as_text(table(tmp_path))
    assert not text.drop(columns=["saved %", "published %"]).duplicated().any()


def test_published_figures_are_of_the_papers_networks(tmp_path: Path) -> None:
    for model, data, static in (
        ("gnn", "nci", "none"),
        ("vgg11_bn", "cifar10_jpeg", "none"),
        ("vgg11_bn", "cifar10", "magnitude"),
        ("resnet18", "cifar10", "magnitude"),
    ):
        write(tmp_path, "test", 0.0, 10, model=model, data=data, static=static)
    chosen = table(tmp_path)
    published = chosen[chosen["drop_limit"] == 0.1].set_index(["model", "data"])["published_percent"]
    assert published["gnn", "nci"] == published["resnet18", "cifar10"] == ""
    assert (
        published["vgg11_bn", "cifar10_jpeg"].startswith("10.98") and published["vgg11_bn", "cifar10"] == "10.24-11.11"
    )


def test_published_scope_stands_beside_the_network(tmp_path: Path) -> None:
    write(tmp_path / "gnn", "test", 0.0, 10)
    assert not [column for column in as_text(table(tmp_path)) if "scope" in column]
    write(tmp_path / "opt", "test", 0.0, 10, scope=30, model="opt", data="piqa")
    both = as_text(table(tmp_path)).drop_duplicates("model").set_index("model")
    assert both.loc["opt", ["saved %", "saved % of published scope"]].tolist() == ["10.00", "30.00"]


def test_a_front_and_a_table_are_read_as_results_are(tmp_path: Path) -> None:
    about = {"model": "gnn", "data": "ogbg_molhiv", "static": "none", "sparsity": 0.0, "heuristic": "StatsTest"}
    about |= {"metric": "roc_auc", "search": "tpe", "trials": 9, "command": "c"}
    rows = [
        {"trial": 4, "valid_drop": 0.05, "valid_saved_percent": 10, "drop_points": 0.3, "saved_percent": 11},
        {"trial": 7, "valid_drop": 0.8, "valid_saved_percent": 20, "drop_points": 0.0, "saved_percent": 21},
    ]
    rows = [row | {"drop_low": -1, "drop_high": 2, "knobs": json.dumps({"tau/a": row["trial"]})} for row in rows]
    front = tmp_path / "front.csv"
    pd.DataFrame([about | row for row in rows]).to_csv(front, index=False)
    of_front = table(front)
    assert [json.loads(one) for one in of_front["setting"]] == [{"tau/a": 4}, {"tau/a": 7}]
    assert list(of_front["saved_percent"]) == [11, 21] and list(of_front["valid_drop_points"]) == [0.05, 0.8]

    both = table(front, ROOT / "results" / "gnn" / "one_tau.csv")
    assert set(both["chosen_on"]) == {"validation", "test (optimistic)"}
    measured = pd.read_csv(ROOT / "results" / "gnn" / "one_tau.csv").query("sites == 4 and heuristic == 'Threshold'")
    best = measured[measured["drop_points"] <= 0.1].nlargest(1, "saved_percent").iloc[0]
    row = both.query("sites == '4' and heuristic == 'Threshold' and drop_limit == 0.1").iloc[0]
    assert row["saved_percent"] == best["saved_percent"] and json.loads(row["setting"])["tau"] == best["tau"]
    assert row[["drop_low", "drop_high"]].tolist() == best[["drop_low", "drop_high"]].tolist()


def test_a_table_names_every_knob_and_target(tmp_path: Path) -> None:
    about = {"model": "gnn", "data": "nci", "heuristic": "Optimal", "metric": "roc_auc", "inputs": 9, "tau": None}
    figures = {"drop_low": -1.0, "drop_high": 1.0, "command": "c", "front": True}
    rows = [
        {"lam": 1e-9, "split": "test", "drop_points": 0.0, "saved_percent": 9},
        {"lam": 1e-11, "split": "test", "drop_points": 0.3, "saved_percent": 2},
        {"lam": 1e-12, "split": "test", "drop_points": 0.2, "saved_percent": 1},
        {"lam": 1e-12, "split": "valid", "drop_points": 0.0, "saved_percent": 3, "front": False},
    ]
    rows[1]["target"] = json.dumps({"target_drop": 0.1, "valid_drop": 0.06, "valid_saved": 0.04})
    file = tmp_path / "table.csv"
    row = table_of(file, rows, about | figures).iloc[0]
    assert row[["drop_points", "valid_drop_points", "valid_saved_percent"]].tolist() == [0.3, 0.06, 4]
    assert row["chosen_on"] == "validation" and json.loads(row["setting"]) == {"lam": 1e-11}
    (alone,) = set(table_of(file, rows[3:], about | figures)["setting"])
    assert alone == "none measured on test"
    assert {json.loads(one)["lam"] for one in table_of(file, rows[2:], about | figures)["setting"]} == {1e-12}


def table_of(file: Path, rows: list[dict], about: dict) -> pd.DataFrame:
    pd.DataFrame([about | row for row in rows]).to_csv(file, index=False)
    return table(file)


def test_what_evaluate_and_pareto_write(command: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    """tau 0 stops nothing, so that the drop is 0 even for an untrained network."""
    for split in ("valid", "test"):
        outcome = command(
            "evaluate.py", "model=gnn", f"split={split}", "exprune.tau=0", f"hydra.run.dir={split}", *TINY
        )
        assert outcome.code == 0, outcome.err
    csv, markdown, swept = (outcome.folder / "out" / name for name in ("table.csv", "table.md", "swept.csv"))
    paper_table.main([str(outcome.folder), "--csv", str(csv), "--markdown", str(markdown)])
    assert "validation" in capfd.readouterr().out
    assert markdown.read_text().count("\n") == 4 and len(list(csv.parent.iterdir())) == 2
    pareto.main([str(outcome.folder / "test"), "--csv", str(swept)])
    on_test = json.loads((outcome.folder / "test" / "result.json").read_text())
    for row, chosen_on in ((pd.read_csv(csv).iloc[0], "validation"), (table(swept).iloc[0], "test (optimistic)")):
        assert row["chosen_on"] == chosen_on and row["drop_points"] == 0
        assert row["saved_percent"] == pytest.approx(100 * on_test["flops"]["saved"], abs=1e-3)
        # No measured quantity is taken for a setting: otherwise valid and test would no longer match.
        knobs = {"tau", "n", "finite_population", "stages", "order", "predict", "scope", "gain_ratio"}
        assert {"tau"} <= set(json.loads(row["setting"])) <= knobs


def test_results_that_contradict(tmp_path: Path) -> None:
    write(tmp_path, "test", 0.0, 10)
    copy = tmp_path / "wandb" / "files"
    copy.mkdir(parents=True)
    (copy / "result.json").symlink_to(tmp_path / "000" / "result.json")
    assert len(read([tmp_path])) == 1
    write(tmp_path, "test", 0.0, 11)
    with pytest.raises(SettingError, match=r"^gnn, ogbg_molhiv, test, StatsTest, [^\n]*two results of one setting"):
        read([tmp_path])


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"metric": {"dense": 1}, "flops": {"saved": 0}}'])
def test_no_result(tmp_path: Path, content: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(SystemExit, match=r"^error: .*result\.json[^\n]*$"):
        paper_table.main([str(tmp_path)])


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "valid_drop\n1\n", 'a\n"'], ids=str)
def test_no_table(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "some.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=rf"^error: {file}: no[^\n]*table[^\n]*$"):
        paper_table.main([str(file)])


def test_dense_results_alone(tmp_path: Path) -> None:
    write(tmp_path, "test", 0.0, 0.0, heuristic="none", tau=None)
    with pytest.raises(SettingError, match="dense results alone"):
        read([tmp_path])
