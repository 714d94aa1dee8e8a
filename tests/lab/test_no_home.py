"""A container: no home folder, or a read-only one; files and folders of the wrong type."""

import pwd
from pathlib import Path

import pytest
import torch
import wandb

from tests.cli import TINY, CommandLine, Outcome

GNN = ("model=gnn", *TINY)


def _results(outcome: Outcome) -> list[Path]:
    """Return the runs' folders, without the copies that W&B keeps in its own folder."""
    return [run for run in outcome.runs() if "wandb" not in run.parts]


def test_a_home_that_cannot_be_written_to(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (command.folder / "file").write_text("in the way")
    home = command.folder / "file" / "home"
    monkeypatch.setenv("HOME", str(home))
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    outcome = command("evaluate.py", *GNN)
    assert outcome.code == 0 and len(_results(outcome)) == 1, outcome.err
    assert "[WARNING] - W&B" in outcome.out


def test_no_home_at_all(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_home(monkeypatch)
    outcome = command("evaluate.py", *GNN)
    assert outcome.code == 0 and len(_results(outcome)) == 1, outcome.err


def test_no_home_for_the_cache(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_home(monkeypatch)
    monkeypatch.delenv("EXPRUNE_CACHE_DIR")
    outcome = command("evaluate.py", *GNN, "logger=none")
    assert outcome.code == 1
    assert "~/.cache/exprune: there is no such home folder; set EXPRUNE_CACHE_DIR" in outcome.error_line()


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), RuntimeError("no service")])
def test_a_run_that_cannot_be_tracked(command: CommandLine, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(**settings: object) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", refuse)
    outcome = command("evaluate.py", *GNN)
    assert outcome.code == 0 and len(_results(outcome)) == 1, outcome.err
    assert f"W&B cannot track this run, which goes on without it: {type(error).__name__}" in outcome.out


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_a_cache_that_cannot_be_written_to(command: CommandLine, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    cache = command.folder / "file" / "cache"
    cache.parent.write_text("in the way")
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(cache))
    settings = (setting for setting in GNN if script == "evaluate.py" or "bootstrap" not in setting)
    outcome = command(script, *settings, "logger=none")
    (line,) = outcome.err.strip().splitlines()
    assert outcome.code == 1 and line.startswith(f"error: {cache}")
    assert "set EXPRUNE_CACHE_DIR (or paths.cache_dir) to a folder that can be" in line


def test_an_output_folder_that_cannot_be_made(command: CommandLine) -> None:
    (command.folder / "outputs").write_text("in the way")
    outcome = command("evaluate.py", *GNN, "logger=none")
    (line,) = outcome.err.strip().splitlines()
    assert outcome.code == 1 and line.endswith("choose a folder that is writable, with hydra.run.dir")


def test_a_folder_is_no_checkpoint(command: CommandLine) -> None:
    folder = command.folder / "mine"
    folder.mkdir()
    said = "name a file of train.py (.safetensors), a checkpoint of Lightning or a saved state_dict"
    assert _refused(command, "mine") == f"error: mine: is a folder, not a file of weights; {said}"
    (folder / "last.ckpt").touch()
    assert _refused(command, "mine").endswith("name a file in it, such as mine/last.ckpt")
    (folder / "config.json").touch()
    assert _refused(command, "mine").endswith("is named by model=hf model.pretrained=mine")


class _Own:
    """A user's class, stored in a checkpoint."""


def test_a_checkpoint_with_code(command: CommandLine) -> None:
    torch.save({"state_dict": {}, "extra": _Own()}, command.folder / "mine.ckpt")
    line = _refused(command, "mine.ckpt")
    assert f"loading it would execute {__name__}._Own, and weights are read without executing code" in line
    assert "weights_only" not in line and "trust" not in line


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04" + bytes(50)])
def test_a_checkpoint_of_another_format(command: CommandLine, content: bytes) -> None:
    (command.folder / "mine.pt").write_bytes(content)
    assert "(truncated, or of another format)" in _refused(command, "mine.pt")


def _refused(command: CommandLine, checkpoint: str) -> str:
    outcome = command("evaluate.py", *GNN, "logger=none", f"checkpoint={checkpoint}")
    assert outcome.code == 1 and not outcome.runs()
    return outcome.error_line()


def _without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path("~").expanduser()
