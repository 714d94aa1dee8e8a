"""The rules for comparison, on the command line: a small Llama, with every token pruned."""

import json

import pytest

from exprune.core.heuristics.magnitude import _say_teal
from tests.cli import TINY, CommandLine

LLAMA = ("model=llama", "data.vocabulary=512", "data.context=32", "model.network.hidden=32", "model.network.heads=2")
SMALL = (*LLAMA, "model.network.layers=2", "model.network.width=48", "logger=none", *TINY)
RULES = {
    "teal": "Teal",
    "teal exprune.divide=greedy": "Teal",
    "top_k": "TopK",
    "wina": "Wina",
    "r_sparse exprune.rank=1": "RSparse",
    "cats": "Cats",
    "chess": "Chess",
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(command: CommandLine, rule: str) -> None:
    calibrated = rule.split()[0] in ("teal", "cats", "chess")
    inputs = ["exprune.inputs=32"] if calibrated else []
    run = command("evaluate.py", *SMALL, *f"exprune={rule}".split(), "exprune.tau=0.5", *inputs)
    assert run.code == 0, run.err
    (folder,) = run.runs()
    result = json.loads((folder / "result.json").read_text())
    assert (result["heuristic"], result["tau"], result["n"]) == (RULES[rule], 0.5, None)
    assert (result["order"], result["scope"], result["predict"]) == ("input", "all", True)
    assert 0.05 < result["flops"]["saved"] < 0.5
    sites = {site["name"].rpartition(".")[2] for site in result["sites"]}
    assert {"gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"} <= sites


def test_a_target_finds_the_share(command: CommandLine) -> None:
    run = command("evaluate.py", *SMALL, "exprune=cats", "exprune.target_saved=0.1", "exprune.inputs=32")
    assert run.code == 0, run.err
    (folder,) = run.runs()
    target = json.loads((folder / "result.json").read_text())["target"]
    assert 0.1 <= target["valid_saved"] < 0.12


def test_the_former_name(command: CommandLine) -> None:
    _say_teal.cache_clear()  # once in a process
    run = command("evaluate.py", *SMALL, "exprune=magnitude", "exprune.tau=0.5", "exprune.inputs=32")
    assert run.code == 0, run.err
    assert (run.out + run.err).count("Magnitude (exprune=magnitude) is called Teal (exprune=teal) now") == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("exprune=teal", "exprune.tau=0.5", "exprune.divide=best"), "divide='best' of Teal: must be even or greedy"),
        (
            ("exprune=r_sparse", "exprune.tau=0.5", "exprune.rank=0"),
            "rank=0 of RSparse: must be a whole number, at least 1",
        ),
        (("exprune=wina", "exprune.tau=2"), "tau=2 of Wina: must be a number in [0, 1]"),
    ],
)
def test_bad_settings_are_one_line(command: CommandLine, settings: tuple[str, ...], line: str) -> None:
    run = command("evaluate.py", *SMALL, *settings)
    assert run.code == 1 and line in run.error_line()
