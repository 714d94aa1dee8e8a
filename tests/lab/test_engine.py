"""``engine=fast`` on the command line: the kernels predict what the simulation predicts; and what is refused."""

import json
import sys

import pytest

from tests.cli import OPT, TINY, CommandLine

OPTIMAL = (
    "exprune=optimal",
    "exprune.order=layer",
    "exprune.lam=1e-7",
    "exprune.stages=[8,16]",
    "logger=none",
    "seed=2201",
)


@pytest.mark.parametrize("settings", [(), ("head=dominance", "head.tau=0.1", "head.stages=[8,16]"), ("exprune=none",)])
def test_predicts_as_the_simulation(command: CommandLine, settings: tuple[str, ...]) -> None:
    more = [setting for setting in OPTIMAL if "exprune=none" not in settings or not setting.startswith("exprune")]
    outcome = command("evaluate.py", *TINY, *OPT, *more, *settings, "engine=fast", "engine.tokens=150")
    assert outcome.code == 0, outcome.err
    (folder,) = outcome.runs()
    result = json.loads((folder / "result.json").read_text())
    engine = result["engine"]
    assert engine["tokens"] == 150 and engine["agreement"] > 0.98
    assert engine["drop"] == pytest.approx(100 * (engine["dense"] - engine["pruned"]))
    assert set(engine["tokens_per_second"]) == {"dense", "pruned"}
    names = {row["name"].rpartition(".")[2] for row in engine["layers"]}
    assert names == {"fc2"} | (set() if "exprune=none" in settings else {"fc1"}) | (
        {"lm_head"} if settings[1:] else set()
    )
    assert all(0 < row["read"] < 1 for row in engine["layers"])
    assert "150 tokens through the kernels" in outcome.out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ("model=gnn", "exprune=optimal", "exprune.lam=1e-9"),
            ["model=gnn", "is not an OPT that predicts the next token", "engine=simulated"],
        ),
        ((*OPT, *OPTIMAL, "engine.tokens=0"), ["engine.tokens=0", "at least 1"]),
        ((*OPT, *OPTIMAL, "exprune.order=input"), ["order=input", "order=layer"]),
        ((*OPT, *OPTIMAL, "exprune.predict=true"), ["predict=true", "no kernel"]),
        ((*OPT, "exprune.tau=0.1", "exprune.n=8"), ["StatsTest", "Calibrated and Optimal"]),
    ],
    ids=lambda value: value[-1] if "=" in value[-1] else "",
)
def test_refusals(command: CommandLine, settings: tuple[str, ...], words: list[str]) -> None:
    outcome = command("evaluate.py", *TINY, "logger=none", "engine=fast", *settings)
    assert outcome.code == 1
    assert all(word in outcome.error_line() for word in words), outcome.err
    assert not outcome.runs()


def test_without_numba(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    outcome = command("evaluate.py", *TINY, *OPT, *OPTIMAL, "engine=fast")
    assert outcome.code == 1 and "pip install 'exprune[fast]'" in outcome.err
