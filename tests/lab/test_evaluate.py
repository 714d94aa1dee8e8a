"""``train.py`` and ``evaluate.py`` from the command line, on the embedded data."""

import json
import re
import threading
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import wandb
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import binary_auroc

from exprune.core import ExPrune
from exprune.core.accounting import ledger
from exprune.core.errors import SettingError
from exprune.files import load_tensors
from exprune.lab.evaluation import measure, passes
from exprune.lab.examples.molecules.task import GraphTask
from tests.cli import TINY, CommandLine


def test_evaluate_trains_once_and_writes_everything(command: CommandLine, session_cache: Path) -> None:
    """The first run says that it trains; result.json contains what the documentation names, and the numbers add up."""
    first = command("evaluate.py", "model=gnn", "exprune.tau=0.1", "seed=1101", "logger=none", *TINY)
    assert first.code == 0, first.err
    assert "no trained weights" in first.out
    (folder,) = first.runs()
    result = json.loads((folder / "result.json").read_text())
    assert (result["model"], result["data"], result["split"], result["static"]) == ("gnn", "nci", "test", "none")
    assert (result["heuristic"], result["tau"], result["n"], result["seed"]) == ("StatsTest", 0.1, 32, 1101)
    assert result["command"] == "python evaluate.py " + " ".join(
        ["model=gnn", "exprune.tau=0.1", "seed=1101", "logger=none", *TINY]
    )
    assert (session_cache / "checkpoints" / result["checkpoint"]).is_file()

    examples = pd.read_parquet(folder / "examples.parquet")
    assert len(examples) == result["inputs"] == 64
    for side in ("dense", "pruned"):
        expected = binary_auroc(torch.tensor(examples[side]), torch.tensor(examples["target"])).item()
        assert result["metric"][side] == pytest.approx(expected)
    metric = result["metric"]
    assert metric["drop"] == pytest.approx(100 * (metric["dense"] - metric["pruned"]))
    assert metric["interval"][0] <= metric["interval"][1]

    flops = result["flops"]
    spent = 0
    for site in result["sites"]:
        if site["eligible"]:
            (stage,) = site["stages"]
            assert stage == {"n": 32, "pruned": site["pruned"]}
            kept = site["outputs"] - site["pruned"]
            spent += 64 * site["pruned"] + 600 * kept + (2 * 32 + 6) * site["outputs"] - 600 * site["outputs"]
            assert 0 <= site["wrong"] <= site["pruned"] <= site["outputs"]
    assert flops["unit"] == "graph"
    assert flops["pruned"] == pytest.approx(flops["dense"] + spent / 64, abs=1e-3)
    assert flops["saved"] == pytest.approx(1 - flops["pruned"] / flops["dense"])
    assert set(flops["paper_scope"]) == {"dense", "pruned", "saved"}
    assert set(result["seconds"]) == {"dense", "pruned"}

    second = command("evaluate.py", "model=gnn", "exprune.tau=0.2", "seed=1101", "logger=none", *TINY)
    assert second.code == 0 and "training" not in second.out


def test_dense_flops_match_the_accounting(command: CommandLine) -> None:
    """``exprune=none``: no sites, no drop, and the paper's count for the dense network."""
    outcome = command("evaluate.py", "model=gnn", "exprune=none", "logger=none", *TINY)
    assert outcome.code == 0, outcome.err
    (folder,) = outcome.runs()
    result = json.loads((folder / "result.json").read_text())
    assert result["heuristic"] == "none" and result["metric"]["drop"] == 0
    pruned = command("evaluate.py", "model=gnn", "exprune.tau=0", "logger=none", *TINY)
    other = json.loads((pruned.runs()[-1] / "result.json").read_text())
    assert other["flops"]["dense"] == result["flops"]["dense"] == result["flops"]["pruned"]
    assert other["metric"]["drop"] == 0 and other["flops"]["saved"] < 0


def test_a_network_that_says_nothing_of_its_flops(command: CommandLine) -> None:
    """A network of torchvision as ``model=``: linear algebra is counted, the rest is named."""
    settings = ["model.network._target_=torchvision.models.squeezenet1_1", "+model.network.num_classes=10"]
    gone = ["~model.network.classes", "model.name=squeezenet", "model.epochs=1"]
    tiny = ["data.limit=64", "data.valid=32", "data.size=24", "logger=none"]
    outcome = command("evaluate.py", "model=vgg11_bn", *settings, *gone, "exprune.tau=0.3", *tiny)
    assert outcome.code == 0, outcome.err
    assert "not counted, as no FLOP formula is known: element-wise operations (1 calls)" in outcome.out
    result = json.loads((outcome.runs()[-1] / "result.json").read_text())
    images, network = torch.zeros(1, 3, 24, 24), torchvision.models.squeezenet1_1(num_classes=10).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    assert result["flops"]["dense"] == result["flops"]["paper_scope"]["dense"] == counter.get_total_flops()
    assert result["flops"]["uncounted"] == {"element-wise operations": 1}


def test_multirun_sweeps_without_retraining(command: CommandLine) -> None:
    """One job per value and one training for all; a wrong value is recorded and the other jobs finish."""
    outcome = command("evaluate.py", "-m", "model=gnn", "exprune.tau=0.01,0.7,0.1", "seed=12", "logger=none", *TINY)
    assert outcome.code == 1
    assert outcome.out.count("no trained weights") == 1
    assert len(outcome.runs()) == 2
    (record,) = outcome.folder.rglob("error.json")
    assert "tau=0.7" in json.loads(record.read_text())["error"]
    assert outcome.err.count("error:") == 1 and "Traceback" not in outcome.err


def test_sites_and_taus_by_name(command: CommandLine) -> None:
    """``exprune.sites`` restricts pruning; ``exprune.tau`` takes a mapping with wildcards."""
    outcome = command(
        "evaluate.py",
        "model=gnn",
        "exprune.sites=[convolutions.0.linear,'convolutions.[23].*']",
        "exprune.tau={convolutions.0.linear: 0.3, *: 0.05}",
        "logger=none",
        *TINY,
    )
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    taus = {site["name"]: site["tau"] for site in result["sites"] if site["eligible"]}
    assert taus == {"convolutions.0.linear": 0.3, "convolutions.2.linear": 0.05, "convolutions.3.linear": 0.05}
    reasons = {site["name"]: site["reason"] for site in result["sites"]}
    assert reasons["convolutions.1.linear"] == "not selected"


def test_wandb_offline(command: CommandLine) -> None:
    """The default logger writes an offline run below the run's folder, finishes it, and reports to nobody."""
    before = set(threading.enumerate())
    outcome = command("evaluate.py", "model=gnn", "exprune.tau=0.1", *TINY)
    assert not [thread for thread in set(threading.enumerate()) - before if "Exporting" in thread.name]
    assert outcome.code == 0, outcome.err
    assert wandb.run is None
    assert list(outcome.runs()[0].glob("wandb/offline-run-*/*.wandb"))


def test_train_writes_where_it_is_told(command: CommandLine) -> None:
    """``checkpoint=PATH`` is what train.py writes and evaluate.py reads; float16 halves it."""
    for dtype in ("float32", "float16"):
        outcome = command(
            "train.py",
            "model=gnn",
            f"checkpoint={dtype}.safetensors",
            f"checkpoint_dtype={dtype}",
            "logger=none",
            *TINY[:2],
        )
        assert outcome.code == 0, outcome.err
    full, half = (outcome.folder / f"{dtype}.safetensors" for dtype in ("float32", "float16"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    tensors, metadata = load_tensors(half)
    assert json.loads(metadata["config"])["model"]["epochs"] == 1
    assert tensors["head.weight"].dtype == torch.float16
    outcome = command("evaluate.py", "model=gnn", "checkpoint=float16.safetensors", "logger=none", *TINY)
    assert outcome.code == 0, outcome.err


@pytest.fixture
def own_cache(command: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that no other process writes to, for tests of what an interrupted run leaves in it."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(cache))
    return cache


def test_interrupted_training_resumes(command: CommandLine, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """An interrupted training resumes in its epoch and ends with the same weights as an uninterrupted one."""

    settings = ("model=gnn", "seed=13", "logger=none", "data.limit=64", "model.epochs=3", "trainer=cpu")
    step = GraphTask.training_step

    def die(self: GraphTask, batch: object, index: int) -> object:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(GraphTask, "training_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        command("train.py", *settings, "checkpoint=resumed.safetensors")
    assert not (command.folder / "resumed.safetensors").exists()
    monkeypatch.setattr(GraphTask, "training_step", step)
    resumed = command("train.py", *settings, "checkpoint=resumed.safetensors")
    assert resumed.code == 0 and "resuming" in resumed.out
    assert resumed.out.count("epoch 3 of 3") == 1 and "epoch 2 of 3" not in resumed.out
    assert not list((own_cache / "training").iterdir())
    tensors, _ = load_tensors(command.folder / "resumed.safetensors")
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_help_names_the_axes(command: CommandLine) -> None:
    outcome = command("evaluate.py", "--help")
    assert outcome.code == 0
    for word in (
        "model: crepe, gnn",
        "exprune: calibrated, cats, chess, magnitude, none, optimal, oracle, r_sparse, stats_test",
        "exprune.tau",
        "trainer: auto, cpu, gpu",
    ):
        assert word in outcome.out


def test_a_sweep_runs_dense_once(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a sweep over tau share one dense pass; another network has its own. A second run repeats none."""
    counts, predict, enter = [], lightning.Trainer.predict, ExPrune.__enter__

    def counted(*arguments: object, **more: object) -> object:
        counts.append("pass")
        return predict(*arguments, **more)

    def entered(run: ExPrune) -> ExPrune:
        counts.append("pruned")
        return enter(run)

    monkeypatch.setattr(lightning.Trainer, "predict", counted)
    monkeypatch.setattr(ExPrune, "__enter__", entered)
    sweep = ("evaluate.py", "-m", "model=gnn", "seed=11,12", "exprune.tau=0.1,0.2", "logger=none", *TINY)
    outcome = command(*sweep, "hydra.sweep.dir=first")
    assert outcome.code == 0, outcome.err
    assert counts.count("pass") == 2 + 4 and counts.count("pruned") == 4
    counts.clear()
    command.keeps_passes = True
    again = command(*sweep, "hydra.sweep.dir=again")
    assert again.code == 0 and not counts
    first, second = ((command.folder / name / "pareto.csv").read_text() for name in ("first", "again"))
    assert second == first.replace("sweep.dir=first", "sweep.dir=again")


@pytest.mark.parametrize("dies_in", ["dense", "pruned", "pruned, by another version", "pruned, by other code"])
def test_interrupted_evaluation_goes_on(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, own_cache: Path, dies_in: str
) -> None:
    """A long evaluation that is interrupted repeats no stored batch, and ends with the same result."""
    settings = ("model=gnn", "seed=1101", "logger=none", *TINY, "data.eval_batch_size=8", "exprune.tau=0.15")
    whole = command("evaluate.py", *settings, "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    monkeypatch.setattr(passes, "SAVE_EVERY", 0.0)
    step, seen = GraphTask.predict_step, []

    def die(self: GraphTask, batch: object, index: int) -> object:
        seen.append(index)
        if len(seen) == (4 if dies_in == "dense" else 8 + 4):
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(GraphTask, "predict_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        command("evaluate.py", *settings, "hydra.run.dir=again")
    command.keeps_passes, another = True, {"dense": 0, "pruned": 0, "pruned, by another version": 3}.get(dies_in, 8 + 3)
    if dies_in.endswith("version"):
        monkeypatch.setattr(ledger, "_VERSION", 0)
    elif dies_in.endswith("code"):
        monkeypatch.setattr(passes, "programs", lambda: "other")
    again = command("evaluate.py", *settings, "hydra.run.dir=again")
    assert again.code == 0, again.err
    assert len(seen) == 2 * 8 + 1 + another  # the batch in which it died, twice; what it cannot know again
    assert ("begins anew" in again.out) == (another > 0)
    first, second = (json.loads((whole.folder / name / "result.json").read_text()) for name in ("whole", "again"))
    for key in ("metric", "flops", "sites"):
        assert first[key] == second[key]


def test_a_limit_names_the_weights_without_it(command: CommandLine, session_cache: Path) -> None:
    """data.limit trains its own network; the message says how to evaluate the full one on few inputs."""
    whole = command("train.py", "model=vgg11_bn", "model.epochs=1", "seed=1108", "logger=none", "trainer=cpu")
    assert whole.code == 0, whole.err
    settings = ("model=vgg11_bn", "model.epochs=1", "seed=1108", "logger=none", "trainer=cpu", "data.limit=64")
    limited = command("evaluate.py", *settings)
    (named,) = re.findall(r"data.limit=64 is of its training, too; with (checkpoint=\S+) it is not", limited.out)
    evaluated = command("evaluate.py", *settings, named)
    assert evaluated.code == 0 and "training" not in evaluated.out


def test_passes_over_different_inputs_are_told_apart() -> None:
    def over(targets: list[int]) -> passes.Pass:
        return passes.Pass({"prediction": np.array(targets), "target": np.array(targets)}, 1.0)

    measure.check_same_inputs(over([0, 1, 2]), over([0, 1, 2]))
    for others in ([0, 1], [0, 2, 1]):
        with pytest.raises(SettingError, match=r"different inputs .3 and .*delete the folder passes"):
            measure.check_same_inputs(over([0, 1, 2]), over(others))
