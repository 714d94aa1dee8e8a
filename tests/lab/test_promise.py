"""Promises: a sequence of settings, the grid that it is part of, and what the command line reports."""

import itertools
import json
import math
from typing import Any

import lightning
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exprune.api.levels import even_levels
from exprune.api.paired_tests import ExactAccuracy
from exprune.api.sequence import bound, how_many_pass, inputs_needed, out_of_reach
from exprune.lab.evaluation import curve
from exprune.lab.evaluation.store import measured
from exprune.lab.evaluation.subject import Inputs, Subject
from tests.cli import TINY, CommandLine

GNN = (
    "model=gnn",
    "logger=none",
    *TINY,
    "data.limit=480",
    "exprune=optimal",
    "exprune.order=layer",
    "exprune.inputs=24",
)


def test_the_sequence_ends_at_the_first_failure() -> None:
    asked = []

    def evidence(lost: list[int]):
        for count in lost:
            asked.append(count)
            yield ExactAccuracy(count, 0, 1000)

    passed, test = how_many_pass(evidence([0, 2, 40, 1]), 0.01, 0.05)
    assert (passed, test.lost, asked) == (2, 2, [0, 2, 40])  # what comes after the failure is not looked at
    passed, test = how_many_pass(evidence([40, 0]), 0.01, 0.05)
    assert (passed, test.lost) == (0, 40)
    assert how_many_pass(evidence([0, 1]), 0.01, 0.05)[0] == 2
    with pytest.raises(ValueError):
        how_many_pass([], 0.01, 0.05)


def test_a_promise_is_kept() -> None:
    """The settings have increasing drops; one beyond the target passes in at most 5 % of all samples."""
    rng, drops, target = np.random.default_rng(0), np.linspace(0, 0.02, 21), 0.01
    broken = 0
    for _ in range(400):
        tests = (ExactAccuracy(*map(int, rng.multinomial(3000, [drop + 0.005, 0.005, 0.99 - drop])[:2]), 3000)
                 for drop in drops)  # fmt: skip
        passed, _ = how_many_pass(tests, target, 0.05)
        broken += passed > 0 and drops[passed - 1] > target
    assert broken / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("test", [ExactAccuracy(20, 12, 4000), ExactAccuracy(0, 0, 4000), ExactAccuracy(5, 6, 4000)])
def test_the_bound_is_where_the_test_turns(test: ExactAccuracy) -> None:
    least = bound(test, 0.05)
    assert least > test.drop
    assert test.p_value(1.01 * least, 0.05) <= 0.05 < test.p_value(0.98 * least, 0.05)


def test_what_so_few_inputs_cannot_show() -> None:
    test = ExactAccuracy(9, 6, 5000)
    assert test.p_value(0.001, 0.05) > 0.05
    needed = inputs_needed(test, 0.001, 0.05, 5000)
    assert test.p_value(0.001, 0.05, 1.05 * needed / 5000) < 0.05 < test.p_value(0.001, 0.05, 0.8 * needed / 5000)
    line = str(out_of_reach(test, 0.001, 0.05, 5000, "image", "lam=1e-12", "target_drop=0.1", True))
    assert line.startswith("target_drop=0.1: 5,000 images cannot show a drop of at most 0.1 points with 0.95 ")
    assert f"is {100 * bound(test, 0.05):.3g}; about {needed:,} would suffice" in line
    worse = ExactAccuracy(30, 6, 5000)
    assert inputs_needed(worse, 0.001, 0.05, 5000) is None
    line = str(out_of_reach(worse, 0.001, 0.05, 5000, "image", "x", "target_drop=0.1", True))
    assert "no number of them would suffice: the drop there is 0.48" in line


@given(st.floats(0.1, 8), st.integers(2, 40), st.floats(0.02, 0.9))
def test_levels_of_even_savings(steepness: float, count: int, most: float) -> None:
    def saved(level: float) -> float:
        return most * level**steepness

    levels = even_levels(saved, count)
    assert len(levels) <= count and levels[-1] == 1 and all(a < b for a, b in itertools.pairwise(levels))
    gaps = np.diff([0.0, *map(saved, levels)])
    steepest = most * (1 - (1 - 1 / 512) ** steepness) + (saved(1 / 512) if steepness < 1 else 0)
    assert max(gaps) <= 2 * most / count + steepest + 1e-9


def test_levels_where_nothing_is_saved() -> None:
    assert even_levels(lambda level: 0.0, 5) == [1.0]


def test_a_promise_on_the_command_line(command: CommandLine) -> None:
    settings = ("exprune.target_drop=30", "exprune.confidence=0.9", "exprune.grid=[1e-9,1e-10,1e-8]")
    run = command("evaluate.py", *GNN, *settings)
    assert run.code == 0, run.err
    (folder,) = run.runs()
    result = json.loads((folder / "result.json").read_text())
    promise = result["target"]
    assert (promise["target_drop"], promise["confidence"], promise["tried"]) == (30, 0.9, 3)
    assert promise["valid_drop"] <= promise["bound"] <= 30 and promise["inputs"] == 480
    assert "of the rarer class" in promise["test"]
    assert result["lam"] == 1e-8 and 0 < promise["valid_saved"] < 1
    printed = " ".join(run.out.split())
    assert "promise: with 0.9 probability over the 480 validation graphs, the drop on unseen ones like them" in printed


def test_a_sweep_over_targets_measures_each_setting_once(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, asked, of_settings = lightning.Trainer.predict, [], []

    def counted(trainer: lightning.Trainer, task: Any, loader: Any, **more: Any) -> Any:
        of_settings.append(loader.loader)
        return predict(trainer, task, loader, **more)

    def every(subject: Subject, inputs: Inputs, run: Any = None, *more: Any, **named: Any) -> Any:
        if run is not None and inputs is subject.inputs("valid"):
            asked.append(inputs.batches)
        return measured(subject, inputs, run, *more, **named)

    monkeypatch.setattr(lightning.Trainer, "predict", counted)
    monkeypatch.setattr(curve, "measured", every)
    settings = ("exprune.target_drop=30,40", "exprune.confidence=0.8,0.9", "exprune.grid=3")
    run = command("evaluate.py", "-m", *GNN, *settings)
    assert run.code == 0, run.err
    targets = [json.loads((folder / "result.json").read_text())["target"] for folder in run.runs()]
    assert len(targets) == 4 and all(one["tried"] <= 3 for one in targets)
    once = [loader for loader in of_settings if any(loader is batches for batches in asked)]
    assert len(asked) == sum(one["tried"] for one in targets)
    assert len(once) - 1 == max(one["tried"] for one in targets)  # beside the dense pass


@pytest.mark.parametrize("exprune", ["threshold", "stats_test", "calibrated"])
def test_one_knob_for_every_test(command: CommandLine, exprune: str) -> None:
    settings = (
        f"exprune={exprune}",
        "exprune.tau=null",
        "exprune.target_drop=40",
        "exprune.confidence=0.8",
        "exprune.grid=3",
    )
    run = command("evaluate.py", "model=gnn", "logger=none", *TINY, "data.limit=480", *settings)
    assert run.code == 0, run.err
    result = json.loads((run.runs()[0] / "result.json").read_text())
    assert result["target"]["confidence"] == 0.8 and result["tau"] is not None


def test_the_papers_tests_take_targets(command: CommandLine) -> None:
    settings = ("exprune=threshold", "exprune.tau=null", "exprune.target_saved=0.1")
    run = command("evaluate.py", "model=gnn", "logger=none", *TINY, *settings)
    assert run.code == 0, run.err
    result = json.loads((run.runs()[0] / "result.json").read_text())
    assert result["tau"] < 0 and result["target"]["valid_saved"] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("exprune.confidence=1",), "exprune.confidence=1: must be a probability above 0 and below 1"),
        (("exprune.confidence=0",), "exprune.confidence=0: must be a probability"),
        (("exprune.confidence=sure",), "exprune.confidence='sure': must be a probability"),
        (("exprune.confidence=0.9", "exprune.grid=1"), "exprune.grid=1: must be the number of settings"),
        (
            ("exprune.confidence=0.9", "exprune.grid=[1e-9]"),
            "exprune.grid=[1e-09]: must be at least 2 different settings",
        ),
        (("exprune.confidence=0.9", "exprune.grid=[1e-9,1e-9]"), "at least 2 different settings"),
        (("exprune.confidence=0.9", "exprune.grid=[1e-9,few]"), "exprune.grid='few'"),
        (("exprune.confidence=0.9", "exprune.grid=[1e-9,-1]"), "lam=-1"),
        (("exprune.confidence=0.9", "exprune.target_drop=-1"), "exprune.target_drop=-1: must be a number, at least 0"),
        (("exprune.confidence=0.9", "exprune.refine=2"), "exprune.refine=2: a promise only tries"),
        (("exprune.confidence=0.9", "exprune.target_drop=null"), "exprune.confidence=0.9: needs a limit on the drop"),
        (("exprune.confidence=0.9", "exprune.target_saved=0.3"), "exprune.confidence=0.9: needs a limit on the drop"),
        (("exprune.confidence=0.9", "exprune.lam=1e-9"), "exprune.confidence=0.9: finds lam itself; set"),
        (
            ("exprune.confidence=0.95", "exprune.target_drop=0", "exprune.grid=[1e-9,1e-8]"),
            "cannot show a drop of at most 0",
        ),
    ],
)
def test_what_cannot_be_promised_is_one_line(command: CommandLine, settings: tuple[str, ...], words: str) -> None:
    run = command("evaluate.py", *GNN, *settings)
    assert run.code == 1 and not run.runs()
    assert words in run.error_line()
