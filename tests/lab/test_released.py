"""The released weights are found by their configurations, and give the figures in results/."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from exprune.lab.checkpoints import checkpoint_name, find_checkpoint
from tests.cli import ROOT, CommandLine

CONFIGURATIONS = (
    ["experiment=paper/gnn_molhiv"],
    ["model=gnn", "data=ogbg_molhiv"],
    ["model=vgg11_bn", "data=cifar10_jpeg"],
)


def _find(overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path | None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*overrides, "overrides=[]", "paths.output_dir=."])
    found = find_checkpoint(cfg)
    assert found is None or found.stem == checkpoint_name(cfg)
    return found


@pytest.mark.parametrize("overrides", CONFIGURATIONS, ids=" ".join)
def test_weights_are_found(overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = _find(overrides, monkeypatch, tmp_path)
    assert found is not None and found.parent == ROOT / "checkpoints"
    assert found.stat().st_size < 25e6
    assert _find([*overrides, "seed=77"], monkeypatch, tmp_path) is None
    assert _find([*overrides, "model.epochs=3"], monkeypatch, tmp_path) is None


def test_each_released_file_belongs_to_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {_find(overrides, monkeypatch, tmp_path) for overrides in CONFIGURATIONS}
    assert found == set((ROOT / "checkpoints").glob("*.safetensors"))


def _has_hiv() -> bool:
    return (Path(os.environ.get("EXPRUNE_DATA_DIR", "nowhere")) / "hiv" / "HIV.csv").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not _has_hiv(), reason="set EXPRUNE_DATA_DIR to a folder with hiv/HIV.csv")
def test_molhiv_table_is_reproduced(command: CommandLine) -> None:
    """The README's command for the paper's row, from the released weights, gives the committed figures."""
    outcome = command("evaluate.py", "experiment=paper/gnn_molhiv", "exprune.tau=0.1", "logger=none")
    assert outcome.code == 0, outcome.err
    assert "training" not in outcome.out
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert round(result["flops"]["dense"], 6) == 23_674_172.428884
    table = pd.read_csv(ROOT / "results" / "gnn_molhiv.csv")
    row = table[(table["heuristic"] == "StatsTest") & (table["tau"] == 0.1) & (table["sites"] == 4)].iloc[0]
    assert result["metric"]["dense"] == pytest.approx(row["dense"], abs=1e-4) and row["dense"] >= 0.74
    assert result["metric"]["pruned"] == pytest.approx(row["pruned"], abs=1e-3)
    assert 100 * result["flops"]["saved"] == pytest.approx(row["saved_percent"], abs=0.01)
    assert result["metric"]["interval"] == pytest.approx([row["drop_low"], row["drop_high"]], abs=0.05)
