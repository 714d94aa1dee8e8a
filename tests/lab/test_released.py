"""The released weights are found by their configurations, and give the figures in results/."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from exprune.lab.evaluation.subject import load_data
from exprune.lab.examples.language.tokens import START
from exprune.lab.training.checkpoints import checkpoint_name, find_checkpoint, other_settings
from tests.cli import ROOT, CommandLine

CONFIGURATIONS = (
    ["experiment=paper/gnn_molhiv"],
    ["model=gnn", "data=ogbg_molhiv"],
    ["model=gnn", "data=ogbg_molhiv", "model.epochs=80"],
    ["model=vgg11_bn", "data=cifar10_jpeg"],
    ["experiment=paper/vgg11_bn_cifar10", "data=cifar10_jpeg", "model.precision=bf16-mixed"],
    ["model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude"],
    ["model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude", "static.sparsity=0.9"],
    ["model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude", "static.sparsity=0.95"],
    ["model=resnet18", "data=cifar10_jpeg"],
    ["model=opt"],
    ["model=opt_wide"],
    ["model=llama", "model.epochs=4"],
    ["model=opt", "model.network.activation=gelu", "model.network.dropout=0.0", "model.epochs=4"],
    ["model=opt", "model.network.activation=silu", "model.network.dropout=0.0", "model.epochs=4"],
    ["model=opt", "model.network.activation=relu", "model.network.dropout=0.0", "model.epochs=4"],
    ["model=opt", "model.network.activation=relu2", "model.network.dropout=0.0", "model.epochs=4"],
)


def _find(overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path | None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*overrides, "overrides=[]", "paths.output_dir=."])
    found = find_checkpoint(cfg)
    assert found is None or re.sub(r"-1of\d+$", "", found.stem) == checkpoint_name(cfg)
    return found


@pytest.mark.parametrize("overrides", CONFIGURATIONS, ids=" ".join)
def test_weights_are_found(overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = _find(overrides, monkeypatch, tmp_path)
    assert found is not None and found.parent == ROOT / "checkpoints"
    assert _find([*overrides, "seed=77"], monkeypatch, tmp_path) is None
    assert _find([*overrides, "model.epochs=3"], monkeypatch, tmp_path) is None


def test_each_released_file_belongs_to_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {_find(overrides, monkeypatch, tmp_path) for overrides in CONFIGURATIONS}
    released = set((ROOT / "checkpoints").glob("*.safetensors"))
    assert all(file.stat().st_size < 26e6 for file in released)
    assert found == {file for file in released if not re.search(r"-([2-9]|\d\d+)of\d+$", file.stem)}


def test_weights_of_another_activation_are_named() -> None:
    """Their tensors fit, and what they compute then means nothing."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", ["model=opt", "data.limit=80", "overrides=[]", "paths.output_dir=."])
    silu, relu = (
        ROOT / f"checkpoints/opt-stdlib-none-seed0-{digest}.safetensors" for digest in ("20c82a39", "36dcf850")
    )
    assert other_settings(silu, cfg) == ["model.network.activation=silu (here null)"]
    assert other_settings(relu, cfg) == []


def _needs(path: str) -> pytest.MarkDecorator:
    there = (Path(os.environ.get("EXPRUNE_DATA_DIR", "nowhere")) / path).exists()
    return pytest.mark.skipif(not there, reason=f"set EXPRUNE_DATA_DIR to a folder with {path}")


TABLES = (  # what README says of a network: its command's settings, the table, dense FLOPs, the least dense metric
    pytest.param(
        ["experiment=paper/gnn_molhiv"], "gnn", 4, 23_674_172.428884, 0.74, id="gnn", marks=_needs("hiv/HIV.csv")
    ),
    pytest.param(
        ["model=vgg11_bn", "data=cifar10_jpeg"],
        "vgg11_bn",
        7,
        305_896_458,
        0.87,
        id="vgg11_bn",
        marks=_needs("cifar10_jpeg"),
    ),
    pytest.param(
        ["model=resnet18", "data=cifar10_jpeg"],
        "resnet18",
        16,
        1_113_507_850,
        0.91,
        id="resnet18",
        marks=_needs("cifar10_jpeg"),
    ),
    pytest.param(
        ["model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude", "static.sparsity=0.98"],
        "vgg11_bn_static",
        7,
        10_962_034,
        0.75,
        id="vgg11_bn_static",
        marks=_needs("cifar10_jpeg"),
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "name", "sites", "flops", "least"), TABLES)
def test_tables_are_reproduced(
    command: CommandLine, settings: list[str], name: str, sites: int, flops: float, least: float
) -> None:
    """The README's command for a network gives the committed figures with the released weights."""
    outcome = command("evaluate.py", *settings, "exprune.tau=0.1", "logger=none")
    assert outcome.code == 0, outcome.err
    assert "training" not in outcome.out
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert round(result["flops"]["dense"], 6) == flops
    table = pd.read_csv(ROOT / "results" / name / "one_tau.csv")
    row = table[(table["heuristic"] == "StatsTest") & (table["tau"] == 0.1) & (table["sites"] == sites)]
    row = row[(row["dense_flops"] - flops).abs() < 0.001].iloc[0]  # the sparsity is this one's
    assert result["metric"]["dense"] == pytest.approx(row["dense"], abs=1e-4) and row["dense"] >= least
    assert result["metric"]["pruned"] == pytest.approx(row["pruned"], abs=1e-3)
    assert 100 * result["flops"]["saved"] == pytest.approx(row["saved_percent"], abs=0.05)


BEYOND = (
    pytest.param(["model=gnn", "data=ogbg_molhiv"], "gnn", id="gnn", marks=_needs("hiv/HIV.csv")),
    pytest.param(["model=vgg11_bn", "data=cifar10_jpeg"], "vgg11_bn", id="vgg11_bn", marks=_needs("cifar10_jpeg")),
    pytest.param(
        ["model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude", "static.sparsity=0.98"],
        "vgg11_bn_static",
        id="vgg11_bn_static",
        marks=_needs("cifar10_jpeg"),
    ),
    pytest.param(["model=resnet18", "data=cifar10_jpeg"], "resnet18", id="resnet18", marks=_needs("cifar10_jpeg")),
    pytest.param(["model=opt"], "opt", id="opt"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "name"), BEYOND)
def test_what_lies_beyond_is_reproduced(command: CommandLine, settings: list[str], name: str) -> None:
    """After a new calibration, the price chosen on validation gives the committed figures.

    On another processor they match only approximately: rounding changes the labels drawn for the Fisher information.
    """
    table = pd.read_csv(ROOT / "results" / name / "beyond.csv")
    row = table[(table["heuristic"] == "Optimal") & (table["order"] == "layer")].iloc[0]
    knobs = ["exprune.order=layer", f"exprune.lam={row['lam']}", f"exprune.stages={row['stages']}".replace(" ", "")]
    outcome = command("evaluate.py", *settings, "exprune=optimal", *knobs, "logger=none")
    assert outcome.code == 0, outcome.err
    assert "training" not in outcome.out
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert result["metric"]["dense"] == pytest.approx(row["dense"], abs=1e-4)
    assert result["metric"]["pruned"] == pytest.approx(row["pruned"], abs=2e-3)
    assert 100 * result["flops"]["saved"] == pytest.approx(row["saved_percent"], abs=0.5)


def test_the_released_opt_can_read_every_question(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", ["model=opt", "data=stdlib_choices", "overrides=[]", "paths.output_dir=."])
    lengths = [batch.input_ids.shape[1] for batch in load_data(cfg).test_dataloader()]
    assert 1 < max(lengths) <= cfg.model.network.positions


@pytest.mark.slow
def test_the_released_opt_beats_a_bigram_model(command: CommandLine, session_cache: Path) -> None:
    """At least 10 points of next-token accuracy, on files that neither has seen."""
    outcome = command("evaluate.py", "model=opt", "exprune=none", "logger=none")
    assert outcome.code == 0, outcome.err
    assert "training" not in outcome.out
    result = json.loads((outcome.runs()[0] / "result.json").read_text())

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = load_data(compose("evaluate", ["model=opt", "overrides=[]", "paths.output_dir=."]))
    begun = {part: [torch.cat([torch.tensor([START]), ids]) for ids in texts] for part, texts in data.tokens.items()}
    size = data.vocabulary
    pairs = torch.cat([ids[:-1] * size + ids[1:] for ids in begun["train"]])
    likeliest = torch.bincount(pairs, minlength=size * size).view(size, size).argmax(1)
    right = torch.cat([likeliest[ids[:-1]] == ids[1:] for ids in begun["test"]])
    assert len(right) == result["inputs"]
    assert result["metric"]["dense"] >= right.double().mean().item() + 0.1
