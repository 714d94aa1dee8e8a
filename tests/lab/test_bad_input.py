"""A wrong setting gives one clear line and exit code 1: no traceback and no partial output."""

import json
from pathlib import Path

import pytest
import torch

from exprune.files import load_tensors, save_tensors
from tests.cli import TINY, CommandLine


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprune.tau=0.7"], ["tau=0.7", "StatsTest", "[0, 0.5]"]),
        (["exprune.tau=-0.1"], ["tau=-0.1", "[0, 0.5]"]),
        (["exprune=threshold", "exprune.tau=0.1"], ["tau=0.1", "Threshold", "0]"]),
        (["exprune.tau=abc"], ["tau='abc'", "a number"]),
        (["exprune.tau=null"], ["exprune.tau=null", "target_drop"]),
        (["exprune.tau=[0.1,0.2]"], ["2 values", "5 eligible sites"]),
        (["exprune.tau={conv.*: 0.1}"], ["'conv.*'", "convolutions.0.linear"]),
        (["exprune.n=300"], ["n=300", "300 terms", "301"]),
        (["exprune.n=0"], ["n=0", "at least 1"]),
        (["exprune.sites=[layer9]"], ["'layer9'", "convolutions.0.linear"]),
        (["exprune.sites=[head]"], ["'head'", "cannot be pruned"]),
        (["split=train"], ["split=train", "test or valid"]),
        (["model=resnet99"], ["model/resnet99", "gnn"]),
        (["exprune=off"], ["exprune", "stats_test"]),
        (["exprune.tua=0.1"], ["tua"]),
        (["data.limit=0"], ["data.limit=0", "at least 1"]),
        (["model.epochs=0", "seed=99"], ["model.epochs=0", "at least 1"]),
        (["trainer.accelerator=tpu"], ["accelerator=tpu", "cpu, gpu or auto"]),
        (["logger=wandb", "logger.mode=onlin"], ["logger.mode=onlin", "must be offline, online"]),
        (["checkpoint=nowhere.safetensors"], ["nowhere.safetensors", "no such file"]),
        (["bootstrap=0"], ["bootstrap=0", "at least 1"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_wrong_setting(command: CommandLine, arguments: list[str], words: list[str]) -> None:
    given = {argument.partition("=")[0] for argument in arguments}
    tiny = [setting for setting in TINY if setting.partition("=")[0] not in given]
    outcome = command("evaluate.py", "model=gnn", "logger=none", *tiny, *arguments)
    _refused(outcome.code, outcome.err, words)
    assert not outcome.runs()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_where_there_is_none(command: CommandLine) -> None:
    outcome = command("evaluate.py", "model=gnn", "logger=none", *TINY[:-1], "trainer=gpu")
    _refused(outcome.code, outcome.err, ["gpu", "trainer=cpu"])


@pytest.fixture
def weights(command: CommandLine) -> Path:
    """A trained checkpoint in the command's folder."""
    outcome = command("train.py", "model=gnn", "logger=none", "checkpoint=good.safetensors", *TINY[:2], "trainer=cpu")
    assert outcome.code == 0, outcome.err
    return outcome.folder / "good.safetensors"


@pytest.mark.parametrize("damage", ["truncated", "of another model", "another shape", "a missing tensor", "pickle"])
def test_wrong_checkpoint(command: CommandLine, weights: Path, damage: str) -> None:
    tensors, metadata = load_tensors(weights)
    path = weights.with_name("bad.safetensors")
    if damage == "truncated":
        path.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "pickle":
        torch.save(tensors, path)
    else:
        if damage == "of another model":
            metadata["config"] = json.dumps({"model": {"name": "vgg11_bn"}})
        elif damage == "another shape":
            tensors["head.weight"] = torch.zeros(1, 30)
        else:
            del tensors["convolutions.0.root"]
        save_tensors(path, tensors, metadata)
    outcome = command("evaluate.py", "model=gnn", "logger=none", *TINY, "checkpoint=bad.safetensors")
    _refused(outcome.code, outcome.err, ["bad.safetensors"])
    assert not outcome.runs()


def test_unwritable_output_directory(command: CommandLine) -> None:
    (command.folder / "file").write_text("in the way")
    outcome = command("evaluate.py", "model=gnn", "logger=none", *TINY, "hydra.run.dir=file/out")
    _refused(outcome.code, outcome.err, ["file/out"])


def test_unwritable_checkpoint(command: CommandLine) -> None:
    (command.folder / "file").write_text("in the way")
    outcome = command("train.py", "model=gnn", "logger=none", *TINY[:2], "checkpoint=file/weights.safetensors")
    _refused(outcome.code, outcome.err, ["file/weights.safetensors", "cannot be written"])


def test_missing_data_without_network(command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("EXPRUNE_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "empty"))
    outcome = command("evaluate.py", "model=gnn", "data=ogbg_molhiv", "logger=none", *TINY)
    _refused(outcome.code, outcome.err, ["HIV.csv", "EXPRUNE_DATA_DIR"])


def _refused(code: int, err: str, words: list[str]) -> None:
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 1
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in words:
        assert word in lines[0]
