"""results/make/promise.py: how often a rule's choice exceeds its target on other inputs, with made-up settings."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from tests.cli import ROOT


@pytest.fixture
def promise(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "results" / "make"))
    module = importlib.import_module("promise")
    monkeypatch.setattr(module, "DIVISIONS", 100)
    return module


def sweep(folder: Path, metric: str, grouped: bool) -> None:
    """Write eight settings with drops from 0 to 2.8 points, on 800 inputs of validation and 1,600 of test."""
    rng = np.random.default_rng(0)
    for split, inputs in (("valid", 800), ("test", 1600)):
        targets = (rng.random(inputs) < 0.5).astype(int)
        dense = np.where(rng.random(inputs) < 0.8, targets, 1 - targets)
        flips = rng.random(inputs)
        for k in range(8):
            pruned = np.where(flips < 0.007 * k, 1 - targets, np.where(flips > 1 - 0.003 * k, targets, dense))
            examples = pd.DataFrame({"target": targets, "dense": dense, "pruned": pruned})
            if metric == "roc_auc":
                noise = rng.normal(0, 0.3, inputs)
                examples["dense"], examples["pruned"] = dense + noise, pruned + noise
            if grouped:
                examples["group"] = np.arange(inputs) // 20
            run = folder / split / f"{10.0 ** (k - 12):g}"
            run.mkdir(parents=True)
            examples.to_parquet(run / "examples.parquet")
            about = {"model": "m", "data": "d", "sparsity": 0.0, "heuristic": "Optimal", "order": "input"}
            figures = {"metric": {"name": metric, "dense": 0.8}, "flops": {"saved": 0.1 * (k + 1)}}
            result = about | figures | {"lam": 10.0 ** (k - 12), "checkpoint": "c"}
            (run / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(("metric", "grouped"), [("accuracy", False), ("accuracy", True), ("roc_auc", False)])
def test_a_promise_is_kept_more_often(
    promise: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, grouped: bool
) -> None:
    sweep(tmp_path / "sweep", metric, grouped)
    monkeypatch.setattr("sys.argv", ["promise.py", str(tmp_path / "sweep"), str(tmp_path / "found")])
    promise.main()
    table = pd.read_csv(tmp_path / "found.csv").set_index(["target_drop", "rule"])
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    for target in promise.TARGETS:
        kept, promised = (table.loc[target, promise.RULES[rule]] for rule in ("kept", "promised"))
        assert promised["exceeded_on_all"] <= promised["exceeded_on_all_high"] and promised["exceeded_on_all"] <= 0.05
        assert promised["exceeded"] < kept["exceeded"] and promised["mean_saved_percent"] < kept["mean_saved_percent"]
    assert set(table["divisions"]) == {100} and set(table["inputs"]) == {2400}
    assert table["validation_share"].iloc[0] == pytest.approx(1 / 3, abs=1e-3)


def test_whole_texts_are_divided(promise: ModuleType, tmp_path: Path) -> None:
    sweep(tmp_path, "accuracy", grouped=True)
    settings, _ = promise.read(tmp_path)
    valid = promise.divided(settings, np.random.default_rng(1))
    assert valid.sum() == 800
    assert all(len(set(valid[settings.units == unit])) == 1 for unit in range(120))
    assert list(settings.saved) == pytest.approx([0.1 * (k + 1) for k in range(8)])


def test_the_boldest_within(promise: ModuleType) -> None:
    class Test:
        def __init__(self, drop: float) -> None:
            self.drop = drop

    def passed(*drops: float) -> int:
        return promise.boldest_within([lambda drop=drop: Test(drop / 100) for drop in drops], 1.0)

    assert passed(0.2, 1.5, 0.9, 3.0) == 3 and passed(2.0, 3.0) == 0 and passed(0.5, 0.7) == 2
