"""Static magnitude pruning: schedules, masks in checkpoints, and evaluation of the remaining weights."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from exprune.core.errors import SettingError
from exprune.files import load_tensors, save_tensors
from exprune.lab.examples.molecules.task import GraphTask
from exprune.lab.training import static as static_module
from exprune.lab.training.checkpoints import load_weights, save_weights
from exprune.lab.training.masks import attach_masks, masked_layers, refresh_weights, sparsity, weights_left
from exprune.lab.training.schedule import phases
from tests.cli import TINY, CommandLine

STATIC = {
    "name": "magnitude",
    "sparsity": 0.98,
    "schedule": "gradual",
    "epochs": 20,
    "epochs_share": 0.4,
    "ramp": 0.6,
    "keep_rate": 0.95,
    "rounds": None,
    "dense_layers": ["head"],
}
CONFIG = OmegaConf.create({"model": {"name": "small"}, "data": {"name": "none"}, "static": STATIC, "seed": 0})


def configured(**changes: object) -> OmegaConf:
    return OmegaConf.create({**STATIC, **changes})


def test_gradual_grows_to_the_sparsity_and_stays() -> None:
    (phase,) = phases(configured(), 50)
    grown = [phase.sparsity_at(epoch) for epoch in range(20)]
    assert phase.epochs == 20
    assert all(a < b for a, b in itertools.pairwise(grown[:12]))
    assert grown[11:] == [pytest.approx(0.98)] * 9
    steps = [b - a for a, b in itertools.pairwise(grown[:12])]
    assert all(a > b for a, b in itertools.pairwise(steps))  # fast first


def test_rounds_are_as_many_as_it_takes() -> None:
    """The paper's 80 rounds that keep 95 % leave 1.65 % of the weights; 2 % is reached in round 77."""
    assert len(phases(configured(schedule="rounds"), 50)) == 77
    eighty = phases(configured(schedule="rounds", rounds=80, epochs=30), 50)
    assert len(eighty) == 80 and {phase.epochs for phase in eighty} == {30}
    assert [phase.sparsity_at(0) for phase in eighty] == pytest.approx([1 - 0.95**k for k in range(1, 81)])
    assert len(phases(configured(schedule="rounds", keep_rate=0.5, sparsity=0.75), 50)) == 2
    assert [phases(configured(epochs=None), dense)[0].epochs for dense in (1, 30, 80)] == [1, 12, 32]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "static.sparsity=1.0: must be at least 0, below 1"),
        ({"sparsity": -0.1}, "static.sparsity=-0.1"),
        ({"epochs": 0}, "static.epochs=0"),
        ({"epochs": None}, "static.epochs=None: must be a whole number, at least 1"),
        ({"epochs": 1.5}, "static.epochs=1.5: must be a whole number, at least 1"),
        ({"schedule": "rounds", "rounds": 2.5}, "static.rounds=2.5: must be a whole number, at least 1"),
        ({"ramp": 1.5}, "static.ramp=1.5"),
        ({"schedule": "sudden"}, "static.schedule=sudden: must be gradual or rounds"),
        ({"schedule": "rounds", "keep_rate": 0.0}, "static.keep_rate=0.0"),
        ({"schedule": "rounds", "keep_rate": 1.1}, "static.keep_rate=1.1"),
        ({"schedule": "rounds", "keep_rate": 1.0}, "static.keep_rate=1.0: must be below 1"),
        ({"schedule": "rounds", "rounds": 0}, "static.rounds=0"),
        ({"sparsity": "much"}, "static.sparsity='much'"),
    ],
)
def test_wrong_schedule(changes: dict, words: str) -> None:
    with pytest.raises(SettingError) as raised:
        phases(configured(**changes), None)
    assert words in str(raised.value)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)


def masked_network(amount: float = 0.7) -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    attach_masks(network, ["head"])
    network.first.weight_mask[torch.rand(5, 3, 3, 3) < amount] = 0
    refresh_weights(network)
    return network


def test_masks_survive_a_checkpoint(tmp_path: Path) -> None:
    """Masks survive exactly, even if a kept weight becomes zero in half precision; the file contains nothing else."""
    network, loaded = masked_network(), masked_network(0.0)
    network.first.weight_orig.data[network.first.weight_mask.bool()] = 1e-12
    path = tmp_path / "weights.safetensors"
    save_weights(path, network, CONFIG, "float16", {"epoch": "3"})
    assert load_weights(path, loaded, "small") == {"epoch": "3"}
    assert torch.equal(loaded.first.weight_mask, network.first.weight_mask)
    assert weights_left(loaded) == weights_left(network) and 0 < sparsity(loaded) < 1
    assert not loaded.first.weight_orig.any() and not loaded.first.weight.any()
    tensors, _ = load_tensors(path)
    assert tensors["first.weight_mask"].numel() == math.ceil(135 / 8)
    assert tensors["first.weight_orig"].numel() == weights_left(network)["first"][0]

    save_weights(path, masked_network(), CONFIG, "float32", {})
    load_weights(path, loaded, "small")
    assert torch.equal(loaded.first.weight, masked_network().first.weight)


def test_half_precision_leaves_alone_what_it_cannot_hold(tmp_path: Path) -> None:
    network, loaded = Small(), Small()
    network.first.weight.data.mul_(1e6 / network.first.weight.abs().max())
    save_weights(tmp_path / "half.safetensors", network, CONFIG, "float16", {})
    load_weights(tmp_path / "half.safetensors", loaded, "small")
    assert torch.equal(loaded.first.weight, network.first.weight)
    assert torch.equal(loaded.head.weight, network.head.weight.half().float())


def test_masked_and_dense_weights_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, masked_network(), CONFIG, "float32", {})
    with pytest.raises(SettingError, match=r"weights\.safetensors: statically pruned weights.*static=none"):
        load_weights(path, Small(), "small")
    save_weights(path, Small(), CONFIG, "float32", {})
    with pytest.raises(SettingError, match=r"weights\.safetensors: dense weights.*static pruning"):
        load_weights(path, masked_network(), "small")


@pytest.mark.parametrize("tensor", ["first.weight_mask", "first.weight_orig"])
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, tensor: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, masked_network(), CONFIG, "float32", {})
    tensors, metadata = load_tensors(path)
    tensors[tensor] = tensors[tensor][:-1]
    save_tensors(path, tensors, metadata)
    with pytest.raises(SettingError, match="mask of 'first'"):
        load_weights(path, masked_network(), "small")


def test_nothing_left_to_prune() -> None:
    with pytest.raises(SettingError, match="dense_layers"):
        attach_masks(Small(), ["*"])


PRUNE = ("model=gnn", "static=magnitude", "static.sparsity=0.6", "logger=none")


def test_evaluate_prunes_statically_first(command: CommandLine, session_cache: Path) -> None:
    """Dense weights, then the masks, then ExPrune: FLOPs are over the remaining weights."""
    outcome = command("evaluate.py", *PRUNE, "exprune.tau=0.2", "exprune.n=8", "seed=31", *TINY)
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert result["static"] == "magnitude" and result["sparsity"] == pytest.approx(0.6, abs=1e-5)
    assert result["checkpoint"].startswith("gnn-nci-magnitude-seed31-")
    left = {row["name"]: row["weights_left"] for row in result["sites"]}
    assert left["head"] == 300  # the classifier keeps its weights
    assert sum(left.values()) - 300 == round(0.4 * 5 * 90_000)

    dense = command("evaluate.py", "model=gnn", "exprune=none", "seed=31", "logger=none", *TINY)
    assert "training" not in dense.out  # pruning has trained them
    (before,) = [run for run in dense.runs() if "none-seed31" in (run / "result.json").read_text()]
    before = json.loads((before / "result.json").read_text())
    assert before["flops"]["unpruned"] == before["flops"]["dense"] == result["flops"]["unpruned"]
    nodes = next(row["outputs"] for row in result["sites"] if row["outputs"]) / 300
    removed = 2 * nodes * (5 * 90_000 - sum(left.values()) + 300) / result["inputs"]
    assert result["flops"]["unpruned"] - result["flops"]["dense"] == pytest.approx(removed)
    assert result["flops"]["saved"] == pytest.approx(1 - result["flops"]["pruned"] / result["flops"]["dense"])

    weights = session_cache / "checkpoints" / result["checkpoint"]
    refused = command("evaluate.py", "model=gnn", f"checkpoint={weights}", "logger=none", *TINY)
    assert refused.code == 1 and "statically pruned" in refused.err and "Traceback" not in refused.err
    weights = session_cache / "checkpoints" / before["checkpoint"]
    refused = command("evaluate.py", *PRUNE, f"checkpoint={weights}", *TINY)
    assert refused.code == 1 and "dense weights" in refused.err


def test_without_a_heuristic_the_pruned_network_is_counted(command: CommandLine) -> None:
    outcome = command("evaluate.py", *PRUNE, "exprune=none", "seed=31", *TINY)
    assert outcome.code == 0, outcome.err
    flops = json.loads((outcome.runs()[0] / "result.json").read_text())["flops"]
    assert flops["pruned"] == flops["dense"] < flops["unpruned"]


def test_interrupted_pruning_ends_at_the_same_sparsity(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (
        *PRUNE,
        "seed=32",
        "data.limit=64",
        "model.epochs=1",
        "static.epochs=4",
        "static.ramp=0.75",
        "trainer=cpu",
    )
    step = GraphTask.training_step

    def die(self: GraphTask, batch: object, index: int) -> object:
        if masked_layers(self.network) and self.current_epoch == 2:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(GraphTask, "training_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        command("train.py", *settings, "checkpoint=resumed.safetensors")
    monkeypatch.setattr(GraphTask, "training_step", step)
    outcome = command("train.py", *settings, "checkpoint=resumed.safetensors")
    assert outcome.code == 0 and "resuming" in outcome.out and "epoch 2 of 4" not in outcome.out
    tensors, _ = load_tensors(command.folder / "resumed.safetensors")
    assert sum(len(t) for name, t in tensors.items() if name.endswith("weight_orig")) == round(0.4 * 450_000)


def test_rounds_go_on_where_they_stopped(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's schedule in miniature: a run that dies in round 3 keeps two; later runs build on earlier rounds."""
    settings = ("model=gnn", "static=magnitude", "static.schedule=rounds", "static.keep_rate=0.5", "static.epochs=1")
    settings = (*settings, "logger=none", "seed=33", "data.limit=64", "model.epochs=1", "trainer=cpu")
    fit, fitted = static_module.fit, []

    def dying_fit(*args: object) -> dict[str, str]:
        if len(fitted) == 2:
            raise RuntimeError("power cut")
        fitted.append(args[4])
        return fit(*args)

    monkeypatch.setattr(static_module, "fit", dying_fit)
    with pytest.raises(RuntimeError, match="power cut"):
        command("train.py", *settings, "static.rounds=3", "checkpoint=three.safetensors")
    fitted.append("it lives")
    outcome = command("train.py", *settings, "static.rounds=3", "checkpoint=three.safetensors")
    assert outcome.code == 0 and "going on after round-002" in outcome.out
    outcome = command("train.py", *settings, "static.rounds=4", "checkpoint=four.safetensors")
    assert outcome.code == 0 and "going on after round-003" in outcome.out
    assert len(fitted) == 5
    for name, share in (("three", 0.5**3), ("four", 0.5**4)):
        tensors, _ = load_tensors(command.folder / f"{name}.safetensors")
        left = sum(len(t) for key, t in tensors.items() if key.endswith("weight_orig"))
        assert left == pytest.approx(share * 450_000, abs=1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("static.sparsity=1", ["static.sparsity=1", "below 1"]),
        ("static.sparsity=0.9999999", ["no weight in convolutions.", "dense_layers"]),
        ("static.name=structured", ["static.name=structured", "none or magnitude"]),
        ("static.dense_layers=['*']", ["dense_layers"]),
        ("exprune.gain_ratio=0", ["gain_ratio=0", "above 0"]),
    ],
)
def test_wrong_setting_is_one_line(command: CommandLine, setting: str, words: list[str]) -> None:
    outcome = command("evaluate.py", *PRUNE[:2], "logger=none", "seed=31", *TINY, setting)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err and outcome.err.strip().count("\n") == 0
    assert [word for word in words if word not in outcome.err] == []
    assert not outcome.runs()


@pytest.mark.parametrize("model", ["vgg11_bn", "resnet18"])
def test_every_vision_model_can_be_pruned(command: CommandLine, model: str) -> None:
    tiny = ("data.limit=8", "model.epochs=1", "bootstrap=50", "trainer=cpu")
    outcome = command("evaluate.py", f"model={model}", "static=magnitude", "static.sparsity=0.5", "logger=none", *tiny)
    assert outcome.code == 0, outcome.err
    result = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert result["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert result["flops"]["dense"] < result["flops"]["unpruned"]
