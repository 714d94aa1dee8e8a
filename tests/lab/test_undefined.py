"""Undefined values are reported in one line before anything long begins, and never become 0 or NaN in a result."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exprune.core.errors import SettingError
from exprune.files import load_tensors, save_tensors
from exprune.lab.evaluation.result import FlopsPerInput, Metric, Result, check_defined, read_result
from exprune.lab.examples.images.task import ImageTask
from exprune.lab.examples.images.vgg import VGG11BN
from exprune.lab.examples.language.opt import small_opt
from exprune.lab.examples.language.task import NextTokenTask
from exprune.lab.examples.language.tokens import StreamLoader, TokenBatch
from exprune.lab.examples.molecules.gcn import GCN
from exprune.lab.examples.molecules.task import GraphTask
from exprune.lab.tasks.intervals import paired_bootstrap, weighted_roc_auc
from exprune.lab.training.checkpoints import save_weights
from tests.cli import CommandLine, Outcome

SETTINGS = ("model=gnn", "logger=none", "model.epochs=1", "trainer=cpu")


def refused(outcome: Outcome, *words: str) -> None:
    """Expect one line on stderr with these words, exit code 1, and no result."""
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not outcome.runs() and not list(outcome.folder.rglob("examples.parquet"))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("evaluate.py", []),
        ("evaluate.py", ["split=valid"]),
        ("evaluate.py", ["exprune=optimal"]),
        ("evaluate.py", ["search=tpe", "search.trials=2"]),
        ("train.py", []),
    ],
    ids=" ".join,
)
def test_a_split_of_one_label_is_refused(command: CommandLine, script: str, arguments: list[str]) -> None:
    """The first 5 molecules of the validation part raise no alert; some of the test part do."""
    outcome = command(script, *SETTINGS, "data.limit=5", "seed=1111", *arguments)
    refused(outcome, "split=valid", "all of its 5 graphs have label 0", "ROC-AUC needs both", "data.limit")
    assert "epoch" not in outcome.out.replace("1 epochs", "")


def test_trials_on_one_label_are_refused(command: CommandLine) -> None:
    settings = ("data.limit=64", "data.eval_batch_size=2", "seed=1112", "search=tpe", "search.limit=2")
    refused(command("evaluate.py", *SETTINGS, *settings), "search.limit=2", "all of its 2 graphs have label 0")


@pytest.mark.parametrize(("rows", "words"), [(1, "split=test: all of its 1 graphs"), (4, "split=valid")])
def test_a_file_of_a_few_molecules(command: CommandLine, tmp_path: Path, rows: int, words: str) -> None:
    (tmp_path / "hiv").mkdir()
    molecules = ["CCO,1", "c1ccccc1,0", "C1CCCCC1O,1", "c1ccncc1,0"][:rows]
    (tmp_path / "hiv" / "HIV.csv").write_text("\n".join(["smiles,HIV_active", *molecules]))
    outcome = command(
        "train.py" if rows > 1 else "evaluate.py", *SETTINGS, "data=ogbg_molhiv", f"paths.data_dir={tmp_path}"
    )
    refused(outcome, words)


@pytest.mark.parametrize("valid", [0, -3, 1437, 5000])
def test_a_split_that_leaves_none_to_train_is_refused(command: CommandLine, valid: int) -> None:
    outcome = command("train.py", "model=vgg11_bn", "logger=none", "trainer=cpu", f"data.valid={valid}")
    refused(outcome, f"data.valid={valid}: must be at least 1, and fewer than all 1437")


def test_a_context_longer_than_the_text_has_no_block() -> None:
    assert len(StreamLoader([torch.arange(100)], 1000, 4, None)) == 0


def test_resamples_of_one_label_are_left_out() -> None:
    """Half of the resamples of two inputs hold one input twice; the others give the value of both."""
    scores, targets = np.array([0.2, 0.8]), np.array([0, 1])
    intervals = paired_bootstrap(weighted_roc_auc, scores, -scores, targets, 200, seed=0)
    assert (intervals.dense, intervals.pruned, intervals.drop) == ((1.0, 1.0), (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(SettingError, match="bootstrap=50: the metric of 2 inputs is undefined in every resample"):
        paired_bootstrap(weighted_roc_auc, scores, scores, np.array([1, 1]), 50, seed=0)


def test_the_score_of_one_label_is_unknown() -> None:
    task = GraphTask(GCN(8, 1), 1e-3, 0.0)
    assert math.isnan(task.score(np.array([0.1, 0.3]), np.array([1, 1])))
    assert task.score(np.array([0.1, 0.3]), np.array([0, 1])) == 1


def test_predictions_that_are_no_numbers_are_counted(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two NaN predictions in each of four batches of 16; the network trained before predicts numbers."""
    settings = (*SETTINGS, "data.limit=64", "data.eval_batch_size=16", "seed=1113", "bootstrap=50")
    assert command("train.py", *settings[:-1]).code == 0
    forward = GCN.forward

    def broken(self: GCN, batch: object) -> torch.Tensor:
        out = forward(self, batch).clone()
        out[0], out[3] = math.nan, math.inf
        return out

    monkeypatch.setattr(GCN, "forward", broken)
    refused(command("evaluate.py", *settings), "dense pass", "NaN or infinite for 8 of 64 graphs")
    outcome = command("evaluate.py", *settings, "exprune=optimal", "exprune.lam=1e-9")
    refused(outcome, "calibration", "NaN or infinite for 2 of 16 graphs")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_each_task_counts_the_inputs_without_a_number(value: float) -> None:
    class Broken(nn.Module):
        """Sets one logit of the second input to ``value``."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def __getattr__(self, name: str) -> object:
            return super().__getattr__(name) if name in ("network", "_modules") else getattr(self.network, name)

        def forward(self, *args: torch.Tensor) -> object:
            out = self.network(*args)
            logits = out if isinstance(out, torch.Tensor) else out.logits
            with torch.no_grad():
                logits.view(-1, logits.shape[-1])[1, 2] = value
            return out

    images = ImageTask(Broken(VGG11BN()), "sgd", 0.1, 0.0, 0.9, 0.0, 0.2, 10).eval()
    assert images.predict_step((torch.rand(4, 3, 16, 16), torch.zeros(4)), 0)["not_finite"] == 1
    text = NextTokenTask(Broken(small_opt(300, 16, 1, 2, 8, 0.0)), 1e-3, 0.0, 0.1).eval()
    ids = torch.randint(3, 300, (2, 5))
    batch = TokenBatch(ids, torch.ones_like(ids), ids, torch.zeros(2))
    assert text.predict_step(batch, 0)["not_finite"] == 1
    with pytest.raises(SettingError, match=r"calibration: .* NaN or infinite for 1 of 10 tokens"):
        text.sampled_loss(batch, torch.Generator())


def test_a_training_that_diverges_is_said(command: CommandLine) -> None:
    outcome = command("train.py", *SETTINGS, "data.limit=64", "seed=1114", "model.task.lr=1e30")
    refused(outcome, "epoch 1, validation", "NaN or infinite for 64 of 64 graphs", "model.task.lr")


def test_weights_that_are_no_numbers(command: CommandLine, tmp_path: Path) -> None:
    assert command("train.py", *SETTINGS, "data.limit=64", "checkpoint=good.safetensors").code == 0
    tensors, metadata = load_tensors(command.folder / "good.safetensors")
    tensors["head.weight"][0, :7] = math.nan
    save_tensors(command.folder / "bad.safetensors", tensors, metadata)
    outcome = command("evaluate.py", *SETTINGS, "data.limit=64", "checkpoint=bad.safetensors")
    refused(outcome, "bad.safetensors", "'head.weight' has 7 of 300 values that are NaN or infinite")
    network = GCN(8, 1)
    network.head.weight.data.fill_(math.inf)
    for dtype in ("float16", "float32"):
        with pytest.raises(SettingError, match=r"'head\.weight' has 8 of 8 values that are NaN or infinite; nothing"):
            save_weights(tmp_path / "broken.safetensors", network, None, dtype, {})
    assert not (tmp_path / "broken.safetensors").exists()


RESULT = Result(
    model="gnn",
    data="nci",
    split="test",
    inputs=64,
    static="none",
    sparsity=0.0,
    seed=0,
    checkpoint="x.safetensors",
    heuristic="StatsTest",
    tau=0.1,
    n=32,
    stages=[32],
    lam=None,
    order=None,
    predict=None,
    scope="relu",
    target=None,
    gain_ratio=None,
    site_selection=None,
    metric=Metric("roc_auc", 0.8, 0.7, 10.0, (5.0, 15.0), (0.7, 0.9), (0.6, 0.8)),
    flops=FlopsPerInput("graph", 10.0, 10.0, 9.0, 0.1, {"dense": 10.0, "pruned": 9.0, "saved": 0.1}),
    sites=[{"name": "a", "tau": 0.1}],
    seconds={"dense": 1.0, "pruned": 1.0},
    versions={},
    command="",
)


def test_a_result_is_strict_json(tmp_path: Path) -> None:
    check_defined(RESULT)
    undefined = replace(RESULT, metrics={"perplexity": {"dense": 20.0, "pruned": math.inf}})
    with pytest.raises(SettingError, match=r"^metrics.perplexity.pruned of gnn on nci is inf: undefined"):
        check_defined(undefined)
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        undefined.write(path)
    assert not list(tmp_path.iterdir())
    RESULT.write(path)
    assert read_result(path)["metric"]["interval"] == [5.0, 15.0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lam": math.nan}))
    with pytest.raises(SettingError, match="NaN is not valid JSON"):
        read_result(path)
