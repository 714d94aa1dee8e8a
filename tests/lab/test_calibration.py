"""Calibrated tests on the command line: statistics are measured, kept and checked; settings are found for a target."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from exprune.api.levels import Tried, most_within
from exprune.core import ExPrune, Oracle, find_sites
from exprune.core.calibration.backward import signed
from exprune.core.errors import SettingError
from exprune.files import load_tensors, save_tensors
from exprune.lab.evaluation.calibration import calibrate
from exprune.lab.evaluation.store import about
from exprune.lab.evaluation.subject import Subject
from exprune.lab.examples.language.choices import ChoiceData
from exprune.lab.examples.language.text import TextData
from exprune.lab.tasks.sampling import draw
from tests.cli import TINY, CommandLine, Outcome

TINY_GNN = ("model=gnn", "logger=none", *TINY)
SMALL = (*TINY_GNN, "exprune.inputs=24")


def result_of(run) -> dict:
    (folder,) = run.runs()
    return json.loads((folder / "result.json").read_text())


def evaluated(command: CommandLine, *settings: str) -> tuple[dict, str]:
    """Return the result of a small evaluation, and what it printed."""
    run = command("evaluate.py", *SMALL, *settings)
    assert run.code == 0, run.err
    return result_of(run), run.out


def calibrations(cache: Path, inputs: int = 24) -> dict[Path, int]:
    """Return the calibrations on this number of inputs, which no other test uses: the cache is shared by processes."""
    files = {path: path.stat().st_mtime_ns for path in (cache / "calibrations").glob("gnn-nci-*.safetensors")}
    return {
        path: made for path, made in files.items() if json.loads(load_tensors(path)[1]["about"])["inputs"][0] == inputs
    }


def test_calibrated_measures_once(command: CommandLine, session_cache: Path) -> None:
    before = calibrations(session_cache)
    first = command("evaluate.py", *SMALL, "exprune=calibrated", "exprune.tau=0.2", "hydra.run.dir=a")
    assert first.code == 0, first.err
    result = result_of(first)
    assert (result["heuristic"], result["tau"], result["order"]) == ("Calibrated", 0.2, "input")
    assert result["stages"] == [8, 16, 32, 64, 128, 192, 256] and result["n"] is None
    assert result["lam"] is None and result["target"] is None
    assert re.search(r"Calibrated, tau 0\.2 *\n", first.out) and " tau " in first.out.partition("share of")[2]
    site = result["sites"][0]
    assert [stage["n"] for stage in site["stages"]] == result["stages"]
    assert sum(stage["pruned"] for stage in site["stages"]) == site["pruned"] > 0
    made = calibrations(session_cache)
    assert len(made) == len(before) + 1

    again = command("evaluate.py", *SMALL, "exprune=optimal", "exprune.lam=1e-9", "hydra.run.dir=b")
    assert again.code == 0, again.err
    assert calibrations(session_cache) == made  # the same statistics serve both
    lam = json.loads((again.folder / "b" / "result.json").read_text())
    assert (lam["heuristic"], lam["tau"], lam["lam"]) == ("Optimal", None, 1e-9)
    assert 0 < lam["flops"]["saved"] < 1
    assert re.search(r"Optimal, lam 1e-09 *\n", again.out) and "tau" not in again.out.partition("share of")[2]


@pytest.mark.parametrize("order", ["model", "neuron"])
def test_orders(command: CommandLine, order: str) -> None:
    settings = ("exprune=calibrated", "exprune.tau=0.1", f"exprune.order={order}", "exprune.stages=[8,100]")
    result, _ = evaluated(command, *settings)
    assert result["order"] == order
    assert [stage["n"] for stage in result["sites"][0]["stages"]] == [8, 100]


@pytest.mark.parametrize("predict", ["false", "true"])
def test_the_order_of_each_input(command: CommandLine, predict: str) -> None:
    settings = ("exprune=optimal", "exprune.lam=1e-9", "exprune.order=input", "exprune.stages=[8,100]")
    result, printed = evaluated(command, *settings, f"exprune.predict={predict}")
    assert (result["order"], result["predict"], result["scope"]) == ("input", predict == "true", "relu")
    flops, without = result["flops"], result["flops"]["without_zero_terms"]
    assert 0 < without["dense"] < flops["dense"] and 0 < without["pruned"] <= flops["pruned"]
    assert "zero terms" in printed


def test_the_stages_that_suit_an_order() -> None:
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        for order, first in (("layer", 32), ("input", 8)):
            cfg = compose("evaluate", ["exprune=optimal", f"exprune.order={order}", "exprune.lam=0", "overrides=[]"])
            stages = instantiate(cfg.exprune.heuristic, _convert_="all").stages
            assert stages[0] == first and stages[-5:] == (32, 64, 128, 192, 256)


def test_every_layer_is_a_site_of_what_predicts(command: CommandLine) -> None:
    settings = ("exprune=optimal", "exprune.lam=1e-9", "exprune.order=input", "exprune.predict=true")
    run = command("evaluate.py", *TINY_GNN, "data.limit=480", *settings, "exprune.stages=[8,100]", "exprune.scope=all")
    assert run.code == 0, run.err
    assert "head" in {site["name"] for site in result_of(run)["sites"]}


def test_small_inputs_left_out(command: CommandLine) -> None:
    result, printed = evaluated(command, "exprune=magnitude", "exprune.tau=0.5")
    assert "Magnitude, tau 0.5 " in printed
    assert (result["heuristic"], result["n"], result["order"], result["predict"]) == ("Magnitude", None, "input", True)
    flops, without = result["flops"], result["flops"]["without_zero_terms"]
    assert 0 < without["saved"] < flops["saved"]  # behind ReLUs many inputs are zero


def test_a_pass_is_known_by_its_order() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1))
    sites = find_sites(model, torch.randn(3, 4))
    orders = [about(ExPrune(sites, Oracle(2, order)), 1.0) for order in ("model", "input")]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("exprune", "target"),
    [
        (exprune, target)
        for exprune in ("calibrated", "optimal", "magnitude")
        for target in ("target_drop=0.5", "target_saved=0.6")  # what is zero saves nearly half
    ],
)
def test_a_target_finds_the_knob_on_validation(command: CommandLine, exprune: str, target: str) -> None:
    settings = (*SMALL, f"exprune={exprune}", *(["exprune.stages=[32,128]"] if exprune == "optimal" else []))  # quicker
    run = command("evaluate.py", *settings, f"exprune.{target}")
    assert run.code == 0, run.err
    result = result_of(run)
    name, value = target.split("=")
    reached = result["target"]
    assert reached[name] == float(value)
    if name == "target_drop":
        assert reached["valid_drop"] <= 0.5
    else:
        assert float(value) <= reached["valid_saved"] < float(value) + 0.01
    # The figures are those of that very setting on the validation split.
    setting = f"exprune.lam={result['lam']}" if exprune == "optimal" else f"exprune.tau={result['tau']}"
    check = command("evaluate.py", *settings, setting, "split=valid", "hydra.run.dir=check")
    assert check.code == 0, check.err
    valid = json.loads((check.folder / "check" / "result.json").read_text())
    assert valid["flops"]["saved"] == pytest.approx(reached["valid_saved"], abs=1e-9)
    assert valid["metric"]["drop"] == pytest.approx(reached["valid_drop"], abs=1e-6)


def test_an_interrupted_search_for_a_knob_goes_on(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SMALL, "exprune=calibrated", "exprune.order=layer", "exprune.target_saved=0.3", "hydra.run.dir=search")
    predict, asked, last = lightning.Trainer.predict, [], [4]

    def counted(*arguments: Any, **more: Any) -> Any:
        if len(asked) == last[0]:
            raise KeyboardInterrupt
        asked.append(1)
        return predict(*arguments, **more)

    monkeypatch.setattr(lightning.Trainer, "predict", counted)

    def run() -> Outcome:
        asked.clear()
        return command("evaluate.py", *settings)

    assert run().code == 130
    assert len(list(command.passes.iterdir())) == 4  # the dense one and three settings
    command.keeps_passes, last[0] = True, -1
    continued = run()
    assert continued.code == 0, continued.err
    rest, found = len(asked), result_of(continued)
    command.keeps_passes = False
    again = run()
    assert again.code == 0 and result_of(again)["tau"] == found["tau"]
    assert len(asked) == rest + 4 and result_of(again)["target"] == found["target"]


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_drop_does_not_end_the_search_too_early(seed: int) -> None:
    """On few inputs the drop varies by more than the target; the setting found still saves about the maximum."""
    noise = torch.rand(10_000, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2
    asked = []

    def tried(level: float) -> Tried:
        drop = 40 * max(0.0, level - 0.5) ** 2 + noise[int(9999 * level)].item() * (level > 0.1)
        asked.append(Tried(level, drop, level))
        return asked[-1]

    found = most_within(tried, 0.1, 1 / 128, 0, 1.0)
    assert found.change <= 0.1 and 0.5 <= found.saved <= 0.6  # without noise: 0.55
    assert all(other.change > 0.1 for other in asked if other.level > found.level)
    assert len(asked) < 30
    coarse, before = found.level, len(asked)
    finer = most_within(tried, 0.1, 1 / 128, 2, 1.0)
    assert finer.change <= 0.1 and coarse <= finer.level < coarse + 1 / 128 and len(asked) == 2 * before + 2
    assert any(other.change > 0.1 and other.level == finer.level + 1 / 512 for other in asked)


def test_where_nothing_is_within_the_target_the_tests_are_still_paid_for() -> None:
    def tried(level: float) -> Tried:
        return Tried(level, 5.0 if level else 0.0, level - 0.002)

    assert most_within(tried, 0.1, 1 / 128, 2, 1.0) == Tried(0.0, 0.0, -0.002)


def test_the_oracle_is_a_ceiling(command: CommandLine) -> None:
    run = command("evaluate.py", *TINY_GNN, "exprune=oracle", "exprune.n=32")
    assert run.code == 0, run.err
    result = result_of(run)
    assert result["metric"]["drop"] == 0
    assert all(site["pruned"] == site["negative"] and site["wrong"] == 0 for site in result["sites"] if site["outputs"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprune.scope=most"], "scope='most': must be relu or all"),
        (
            ["exprune.target_drop=null"],
            "exprune.tau=null: set one of exprune.tau, target_drop, target_kl, target_saved",
        ),
        (["exprune.target_saved=0.99"], "exprune.target_saved=0.99: out of reach; the most"),
        (["exprune.target_drop=-1"], "exprune.target_drop=-1: must be a number, at least 0"),
        (["exprune.refine=-1"], "exprune.refine=-1: must be 0 to 10"),
        (["exprune.refine=0.5"], "exprune.refine=0.5: must be 0 to 10"),
        (["exprune.tau=0.6"], "tau=0.6"),
        (["exprune.order=best"], "order='best': must be one of model, layer, neuron"),
        (["exprune.inputs=0"], "exprune.inputs=0: must be a whole number of inputs"),
        (["exprune.stages=[64,32]"], "stages=[64, 32]"),
        (["exprune.inputs=1", "seed=0"], "rows of convolutions.0.linear; at least 100 are needed"),
    ],
)
def test_wrong_settings_are_one_line(command: CommandLine, arguments: list[str], words: str) -> None:
    refused_in_a_line(command, ("exprune=calibrated", *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprune=threshold", "exprune.predict=true"], "exprune.predict"),
        (["exprune=oracle", "exprune.order=layer"], "order='layer' of Oracle: must be model or input"),
        (["exprune=oracle", "exprune.scope=all"], "feeds no activation, so a stopped neuron needs a prediction"),
        (["exprune=magnitude", "exprune.tau=1.5"], "tau=1.5 of Magnitude: must be a number in [0, 1]"),
        (["exprune=magnitude", "exprune.tau=0.5", "exprune.order=layer"], "calibrate with order=input"),
        (
            ["exprune=optimal", "exprune.lam=0", "exprune.predict=maybe"],
            "predict='maybe' of Optimal: must be true or false",
        ),
    ],
)
def test_what_a_test_cannot_do_is_one_line(command: CommandLine, arguments: list[str], words: str) -> None:
    refused_in_a_line(command, arguments, words)


def refused_in_a_line(command: CommandLine, arguments: Sequence[str], words: str) -> None:
    run = command("evaluate.py", *TINY_GNN, *arguments)
    assert run.code == 1
    assert words in run.error_line()
    assert not run.runs()


def test_a_calibration_of_something_else_is_refused(command: CommandLine, session_cache: Path, tmp_path: Path) -> None:
    calibrated = ("exprune=calibrated", "exprune.tau=0.1", "exprune.inputs=25")
    assert command("evaluate.py", *SMALL, *calibrated, "hydra.run.dir=a").code == 0
    (file,) = calibrations(session_cache, inputs=25)
    tensors, metadata = load_tensors(file)
    for what, value in (("weights", "0123"), ("sites", ["head"]), ("order", "best"), ("scope", "most")):
        about = json.loads(metadata["about"]) | {what: value}
        other = tmp_path / f"{what}.safetensors"
        save_tensors(other, tensors, metadata | {"about": json.dumps(about)})
        run = command("evaluate.py", *SMALL, *calibrated, f"exprune.calibration={other}", "hydra.run.dir=b")
        assert run.code == 1
        assert f"made for {what}=" in run.err
    save_tensors(tmp_path / "no.safetensors", tensors, {})
    run = command("evaluate.py", *SMALL, *calibrated, f"exprune.calibration={tmp_path / 'no.safetensors'}")
    assert run.code == 1 and "its format is None" in run.err


def test_questions_have_nothing_to_calibrate_on() -> None:
    data = ChoiceData(lambda *_: [], lambda _: [], ".", ".", 1)
    with pytest.raises(SettingError, match="no training split to calibrate on"):
        data.calibration_dataloader(8, torch.Generator())


def test_labels_are_drawn_by_their_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 0.0]]).expand(20_000, 3)
    drawn = draw(logits, torch.Generator().manual_seed(0)).bincount(minlength=3) / 20_000
    torch.testing.assert_close(drawn, logits[0].softmax(0), atol=0.01, rtol=0)


def test_random_signs_have_the_fisher_information_of_drawn_labels() -> None:
    of_one = torch.tensor([0.0, 3.0, -1.0, -math.inf], dtype=torch.float64)
    logits = of_one.repeat(40_000, 1).requires_grad_()
    signed(logits, torch.Generator().manual_seed(0)).backward()
    assert logits.grad is not None
    p = of_one.softmax(0)
    found = logits.grad.T @ logits.grad / len(logits)
    torch.testing.assert_close(found, p.diag() - p.outer(p), atol=0.003, rtol=0)


def test_every_row_tells_of_every_class() -> None:
    logits = torch.zeros(20, 1000, dtype=torch.float64, requires_grad=True)
    signed(logits, torch.Generator().manual_seed(0)).backward()
    assert logits.grad is not None
    estimate = logits.grad.square().mean(0) * 1000
    assert estimate.min() > 0.8 and estimate.max() < 1.2  # 20 drawn labels would leave 980 of them at 0.001


def test_calibration_blocks_are_of_the_training_texts() -> None:
    data = TextData.__new__(TextData)
    data.context, data.eval_batch_size = 4, 8
    data.tokens = {"train": [torch.arange(10, 20), torch.arange(30, 37)], "test": [torch.arange(99)]}
    (batch,) = data.calibration_dataloader(3, torch.Generator().manual_seed(0))
    assert len(batch.input_ids) == 3
    assert all(10 <= token < 37 for row in batch.targets.tolist() for token in row if token >= 0)


def test_a_layer_that_the_inputs_do_not_reach(cpu_trainer: Callable[..., lightning.Trainer]) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    task = lightning.LightningModule()
    task.network = network
    settings = SimpleNamespace(inputs=24, order="input", stages=(2,))
    subject = SimpleNamespace(
        cfg=SimpleNamespace(exprune=settings, seed=0),
        task=task,
        sites=find_sites(network, torch.randn(3, 4)),
        data=SimpleNamespace(calibration_dataloader=lambda inputs, generator: []),
        trainer=cpu_trainer(),
    )
    with pytest.raises(SettingError, match="inputs=24: 1: was not reached by the batches"):
        calibrate(cast(Subject, subject))
