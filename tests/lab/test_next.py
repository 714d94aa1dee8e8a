"""What an evaluation with one of the paper's tests says to run next."""

import json
import shlex

import pytest

from exprune.lab.evaluation.report import optimal_command
from tests.cli import TINY, CommandLine

RUN = "python evaluate.py"


@pytest.mark.parametrize(
    ("given", "following", "target"),
    [
        ("model=gnn exprune.tau=0.1", "model=gnn exprune=optimal exprune.target_drop=1", "a drop of at most 1 point"),
        (
            "exprune=threshold exprune.tau=null exprune.target_drop=0.1 exprune.n=16 seed=3 exprune.confidence=0.95",
            "seed=3 exprune=optimal exprune.target_drop=0.1 exprune.confidence=0.95",
            "a drop of at most 0.1 points",
        ),
        (
            "model=opt '+exprune.finite_population=true' 'exprune.sites=[*.fc1]' exprune.target_kl=0.01 data.limit=9",
            "model=opt data.limit=9 exprune=optimal 'exprune.sites=[*.fc1]' exprune.target_kl=0.01",
            "exprune.target_kl=0.01",
        ),
        (
            "experiment=paper/gnn_molhiv exprune.target_drop=null search=none search.trials=9 model.pretrained=a/b",
            "experiment=paper/gnn_molhiv model.pretrained=a/b exprune=optimal exprune.target_drop=1",
            "a drop of at most 1 point",
        ),
    ],
)
def test_the_command(given: str, following: str, target: str) -> None:
    command, words = optimal_command(f"{RUN} {given}")
    assert shlex.split(command) == shlex.split(f"{RUN} {following}") and words == target


def test_a_run_ends_with_the_command_which_runs(command: CommandLine) -> None:
    tiny = ("model=gnn", "logger=none", *TINY)
    outcome = command("evaluate.py", *tiny, "exprune.tau=0.2")
    printed = outcome.out.splitlines()
    first = next(k for k, line in enumerate(printed) if line.startswith("next, optimal stopping"))
    assert printed[first].endswith("for a drop of at most 1 point:")
    assert all("results: " in line for line in printed[first + 2 :])
    words = shlex.split(printed[first + 1])
    assert words[:2] == ["python", "evaluate.py"] and set(tiny) <= set(words)
    outcome = command("evaluate.py", *words[2:], "hydra.run.dir=next")
    assert outcome.code == 0 and "next, optimal stopping" not in outcome.out
    result = json.loads((outcome.folder / "next" / "result.json").read_text())
    assert result["heuristic"] == "Optimal" and result["target"]["target_drop"] == 1


def test_a_sweep_does_not_say_so(command: CommandLine) -> None:
    outcome = command("evaluate.py", "-m", "model=gnn", "logger=none", "exprune.tau=0.2,0.3", *TINY)
    assert outcome.code == 0 and len(outcome.runs()) == 2 and "next, optimal" not in outcome.out
