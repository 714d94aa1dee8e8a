"""The user's surroundings: working directories, environment variables, files of other programs, no network."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import wandb

from exprune.files import load_tensors
from exprune.lab.data.hub import without_hub
from tests.cli import TINY, CommandLine

GNN = ("model=gnn", *TINY)


def test_relative_paths_under_chdir(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are relative to the folder in which the command was started, whatever folder its jobs run in."""
    chdir = ("logger=none", "hydra.job.chdir=true")
    outcome = command("train.py", *(s for s in GNN if "bootstrap" not in s), *chdir, "checkpoint=a/weights.safetensors")
    assert outcome.code == 0, outcome.err
    assert (outcome.folder / "a" / "weights.safetensors").is_file()
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", "cache")
    outcome = command(
        "evaluate.py", *GNN, *chdir, "checkpoint=a/weights.safetensors", "exprune=optimal", "exprune.lam=0"
    )
    assert outcome.code == 0, outcome.err
    assert (outcome.folder / "cache" / "calibrations").is_dir()
    assert not list(outcome.folder.glob("outputs/**/cache"))
    outcome = command("evaluate.py", "-m", *GNN, *chdir, "checkpoint=a/weights.safetensors", "exprune.tau=0.1,0.2")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("variable", "setting", "runs"),
    [
        (None, None, "offline"),
        ("disabled", None, None),
        ("offline", None, "offline"),
        ("disabled", "offline", "offline"),
        ("offline", "disabled", None),
    ],
)
def test_wandb_mode(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, variable: str | None, setting: str | None, runs: str | None
) -> None:
    """W&B's own variable takes effect unless logger.mode was given."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    given = () if setting is None else (f"logger.mode={setting}",)
    outcome = command("evaluate.py", *GNN, *given)
    assert outcome.code == 0, outcome.err
    found = {path.name.partition("-run-")[0] for path in outcome.folder.rglob("*-run-*") if path.is_dir()}
    assert found == ({runs} if runs else set())


def test_an_online_run_is_asked_for_by_the_variable(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(**settings: object) -> None:
        asked.append(settings["mode"])
        raise wandb.errors.UsageError("no key")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_MODE", "online")
    outcome = command("evaluate.py", *GNN)
    assert (outcome.code, asked) == (1, ["online"])
    assert "logger.mode=online: no key" in outcome.err


def test_a_wrong_wandb_mode(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    outcome = command("evaluate.py", *GNN)
    assert outcome.code == 1
    assert (
        outcome.err.strip() == "error: WANDB_MODE=ofline: must be offline, online, or disabled (which is logger=none)"
    )


@pytest.fixture
def weights(command: CommandLine) -> dict[str, torch.Tensor]:
    """Return the weights of a trained network."""
    settings = (s for s in GNN if "bootstrap" not in s)
    assert command("train.py", *settings, "logger=none", "checkpoint=good.safetensors").code == 0
    return load_tensors(command.folder / "good.safetensors")[0]


@pytest.mark.parametrize("form", ["lightning.ckpt", "state_dict.pt"])
def test_checkpoints_of_torch_save(command: CommandLine, weights: dict[str, torch.Tensor], form: str) -> None:
    saved: dict = weights
    if form == "lightning.ckpt":
        state = {f"network.{name}": tensor for name, tensor in weights.items()}
        saved = {"epoch": 3, "state_dict": state, "callbacks": {}, "hyper_parameters": {"lr": 0.1}}
    torch.save(saved, command.folder / form)
    results = []
    for checkpoint in ("good.safetensors", form):
        outcome = command(
            "evaluate.py", *GNN, "logger=none", f"checkpoint={checkpoint}", f"hydra.run.dir=of/{checkpoint}"
        )
        assert outcome.code == 0, outcome.err
        results.append(json.loads((outcome.folder / "of" / checkpoint / "result.json").read_text()))
    assert results[0]["metric"] == results[1]["metric"] and results[0]["flops"] == results[1]["flops"]


class Harmful:
    """An object that would run code if it were unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("damage", ["code", "truncated", "no tensors", "another shape", "a missing tensor"])
def test_checkpoints_that_cannot_be_used(command: CommandLine, weights: dict[str, torch.Tensor], damage: str) -> None:
    path = command.folder / "mine.ckpt"
    if damage == "code":
        torch.save({"state_dict": weights, "extra": Harmful()}, path)
    elif damage == "no tensors":
        torch.save({"state_dict": {"a": 1}}, path)
    else:
        if damage == "another shape":
            weights["head.weight"] = torch.zeros(1, 30)
        elif damage == "a missing tensor":
            del weights["head.weight"]
        torch.save(weights, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    before = path.read_bytes()
    outcome = command("evaluate.py", *GNN, "logger=none", "checkpoint=mine.ckpt")
    (line,) = outcome.err.strip().splitlines()
    assert outcome.code == 1 and line.startswith("error: ") and "mine.ckpt" in line
    assert "delete" not in line and path.read_bytes() == before
    assert not (command.folder / "executed").exists()


def test_a_file_that_is_no_checkpoint_is_not_to_be_deleted(command: CommandLine) -> None:
    (command.folder / "notes.safetensors").write_text("my only copy")
    outcome = command("evaluate.py", *GNN, "logger=none", "checkpoint=notes.safetensors")
    assert outcome.code == 1 and "notes.safetensors" in outcome.err and "delete" not in outcome.err


def test_without_a_network_it_is_said_soon(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setenv("EXPRUNE_DATA_DIR", str(tmp_path))
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    assert without_hub()
    start = time.monotonic()
    outcome = command("evaluate.py", "experiment=paper/opt_piqa", "logger=none")
    assert time.monotonic() - start < 20
    assert outcome.code == 1 and len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert "Hugging Face hub" in outcome.err
