"""The Python interface and the command line give the same figures."""

import json

import pytest
from hydra import compose, initialize_config_dir

import exprune
from exprune.core.calibration.files import network_digest
from exprune.lab.configured import heuristic_of
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.evaluation.subject import prepare
from tests.cli import ROOT, CommandLine

LAM = 1e-7
SETTINGS = ("model=opt", "data.limit=8", "model.epochs=1", "bootstrap=20", "trainer=cpu", "logger=none",
            "model.network.hidden=64", "exprune=optimal", f"exprune.lam={LAM}", "exprune.inputs=16")  # fmt: skip


@pytest.mark.parametrize("scope", ["relu", "all"])
def test_a_price_saves_and_changes_the_same(command: CommandLine, scope: str) -> None:
    settings = (*SETTINGS, f"exprune.scope={scope}", f"exprune.predict={scope == 'all'}")
    run = command("evaluate.py", *settings)
    assert run.code == 0, run.err
    (folder,) = run.runs()
    result = json.loads((folder / "result.json").read_text())

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*settings, "overrides=[]", "paths.output_dir=."])
    subject = prepare(cfg, heuristic_of(cfg))
    model = subject.task.network.cpu().eval()
    calibration = exprune.Calibration(statistics_of(subject), {}, "kl", network_digest(model), scope)
    batches = [{"input_ids": of.input_ids, "attention_mask": of.attention_mask} for of in subject.loader("test")]
    (point,) = exprune.tradeoff(model, calibration, batches, prices=[LAM]).points
    sites = {count.site.name: [count.dense_flops, count.pruned_flops] for count in point.flops.sites}
    assert sites == {row["name"]: list(row["flops"].values())[:2] for row in result["sites"] if row["outputs"]}
    assert 0 < point.flops.saved < 1
    assert point.change.mean == pytest.approx(result["divergence"]["mean"], rel=1e-4)
    assert point.change.same == pytest.approx(result["divergence"]["same"])
