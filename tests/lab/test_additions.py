"""Settings added with ``+`` are read by something, or refused in one line."""

import pytest

from tests.cli import TINY, CommandLine

GNN = ("model=gnn", "logger=none", *TINY)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("+exprune.tua=0.1", "exprune.tua; did you mean exprune.tau?"),
        ("++exprune.tua=0.1", "exprune.tua; did you mean exprune.tau?"),
        ("+exprune={tua: 0.1}", "exprune.tua; did you mean exprune.tau?"),
        ("+tau=0.1", "tau; did you mean exprune.tau?"),
        ("+limit=3", "limit; did you mean data.limit?"),
        ("+data.limt=3", "data.limt; did you mean data.limit?"),
        ("+model.network.hiden=30", "model.network.hiden; did you mean model.network.hidden?"),
        ("+data.module.read.file=x", "data.module.read.file; --cfg job lists the settings that exist"),
        ("+model.head.width=3", "model.head; did you mean head?"),
        ("+trainer.max_steps=3", "trainer.max_steps; --cfg job lists the settings that exist"),
        ("+exprune.order=input", "exprune.order; --cfg job lists the settings that exist"),  # of another heuristic
    ],
)
def test_what_nothing_reads(command: CommandLine, added: str, said: str) -> None:
    outcome = command("evaluate.py", *GNN, added)
    assert outcome.code == 1 and not outcome.runs()
    assert outcome.err.strip() == f"error: {added}: nothing reads a setting {said}"


def test_what_train_does_not_read(command: CommandLine) -> None:
    outcome = command("train.py", *(s for s in GNN if "bootstrap" not in s), "+split=valid")
    assert outcome.code == 1
    assert outcome.err.startswith("error: +split=valid: nothing reads a setting split; ")


@pytest.mark.parametrize(
    "added",
    [
        ["++exprune.tau=0.2"],  # is there
        ["+exprune.mine=0.2", "exprune.tau=${exprune.mine}"],  # an interpolation
        ["exprune.tau={convolutions.*: 0.1}", "+exprune.tau.head=0.2", "exprune.sites=null"],  # a mapping of sites
        ["+model.precision=32-true"],  # the code
        ["+data.epochs.mine=3", "data.epochs={gnn: 1}"],  # a mapping of networks
        ["+hydra.job.env_set.EXPRUNE_TRIAL=1"],  # Hydra's own
    ],
)
def test_what_something_reads(command: CommandLine, added: list[str]) -> None:
    outcome = command("evaluate.py", *GNN, *added)
    assert "nothing reads" not in outcome.err, outcome.err


@pytest.mark.parametrize("launcher", ["basic", "parallel"])
def test_in_a_sweep(command: CommandLine, launcher: str) -> None:
    outcome = command("evaluate.py", "-m", *GNN, f"hydra/launcher={launcher}", "+exprune.tua=0.1,0.2")
    assert outcome.code == 1 and not outcome.runs()
    said = "+exprune.tua=0.2: nothing reads a setting exprune.tua; did you mean exprune.tau?"
    assert any(line.startswith("error:") and said in line for line in outcome.err.splitlines()), outcome.err
