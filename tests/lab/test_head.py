"""``head=dominance`` on the command line: the result counts the logits that were dropped, and nothing else."""

import json

import pandas as pd
import pytest

from tests.cli import TINY, CommandLine

MORE = ("data.limit=128",)  # a head of ten classes is calibrated on one row an image
OPT = ("data.vocabulary=512", "data.context=32", "model.network.hidden=32", "model.network.heads=2")


@pytest.mark.parametrize(
    ("settings", "outputs", "terms"),
    [(("model=vgg11_bn", *MORE), 10, 512), (("model=opt", *OPT), 512, 32)],
    ids=["vgg11_bn", "opt"],
)
def test_the_head_alone(command: CommandLine, settings: tuple[str, ...], outputs: int, terms: int) -> None:
    """The FLOPs follow from the logits dropped at each stage; examples.parquet lists the changed predictions."""
    more = ("exprune=none", "head=dominance", "head.tau=0.2", "head.stages=[4,16]", "logger=none", "seed=2201")
    outcome = command("evaluate.py", *TINY, *settings, *more)
    assert outcome.code == 0, outcome.err
    (folder,) = outcome.runs()
    result = json.loads((folder / "result.json").read_text())
    head, examples = result["head"], pd.read_parquet(folder / "examples.parquet")
    assert head["outputs"] == outputs and [stage["n"] for stage in head["stages"]] == [4, 16]
    assert head["rows"] >= result["inputs"]  # the last token of a text predicts, and has no target
    assert head["flops"]["dense"] == pytest.approx(2 * terms * outputs * head["rows"] / result["inputs"])
    assert 0 < sum(stage["dropped"] for stage in head["stages"]) <= (outputs - 1) * head["rows"]
    changed = int((examples["dense"] != examples["pruned"]).sum())
    assert changed <= head["changed"] <= changed + head["rows"] - result["inputs"]
    assert result["flops"]["saved"] == 0 and result["metrics"] == {}
    assert "changed" in outcome.out


def test_no_risk_drops_nothing_and_goes_with_pruned_sites(command: CommandLine) -> None:
    more = (*TINY, *MORE, "model=vgg11_bn", "exprune.tau=0.3", "logger=none", "seed=2201")
    outcome = command("evaluate.py", "-m", *more, "head=dominance", "head.tau=null,0")
    assert outcome.code == 0, outcome.err
    without, tested = (json.loads((folder / "result.json").read_text()) for folder in outcome.runs()[:2])
    assert without["head"] is None and tested["head"]["changed"] == 0 and tested["head"]["flops"]["saved"] < 0
    assert without["flops"] == tested["flops"] and without["metric"] == tested["metric"]
    table = pd.read_csv(next(outcome.folder.rglob("pareto.csv")))
    assert set(table["head_changed_share"].dropna()) == {0.0}


@pytest.mark.slow
def test_a_head_whose_logits_are_dropped_is_no_site(command: CommandLine) -> None:
    """Savings at the head are counted once, and so are the zeros that reach the second layers."""
    optimal = ("exprune=optimal", "exprune.lam=1e-9", "exprune.stages=[4,16]", "exprune.predict=true", "logger=none")
    scope = ("exprune.order=input", "exprune.scope=all", "seed=2201", "data.limit=400")
    outcome = command("evaluate.py", "-m", *TINY, "model=opt", *OPT, *optimal, *scope, "head=none,dominance")
    assert outcome.code == 0, outcome.err
    without, dropped = (json.loads((folder / "result.json").read_text()) for folder in outcome.runs()[:2])
    pruned = [{site["name"] for site in result["sites"] if site["outputs"]} for result in (without, dropped)]
    assert pruned[0] - pruned[1] == {"lm_head"}
    (head,) = (site for site in dropped["sites"] if site["name"] == "lm_head")
    assert head["reason"].startswith("its logits are dropped, with head.tau=")
    alone = command(
        "evaluate.py", *TINY, "model=opt", *OPT, *optimal, *scope, "exprune.sites=*fc2", "hydra.run.dir=fc2"
    )
    flops = json.loads((alone.folder / "fc2" / "result.json").read_text())["flops"]
    assert flops["saved"] != 0 and flops["paper_scope"]["saved"] == 0  # of fc1 alone
    assert without["flops"]["zero_skipping"] is None and without["flops"]["without_zero_terms"]["saved"] < 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model=gnn", "head=dominance"), "is not judged by its largest logit; use head=none"),
        (("model=vgg11_bn", "head=dominance", "head.tau=0.7"), "tau=0.7 of Dominance: must be a number in [0, 0.5]"),
        (("model=vgg11_bn", "head=dominance", "head.stages=[600]"), "stages=[600]: must be ascending"),
        (
            ("model=vgg11_bn", "head=dominance", "search=tpe"),
            "search=tpe: a search covers the sites only; use head=none",
        ),
    ],
)
def test_what_it_cannot_do_is_one_line(command: CommandLine, settings: tuple[str, ...], words: str) -> None:
    outcome = command("evaluate.py", *settings, "logger=none", "seed=2202", *TINY)
    assert outcome.code == 1 and words in outcome.err and "training" not in outcome.out
    assert outcome.err.count("\n") == 1
