"""The benchmarks run and write the fields that are read later; no test depends on a time."""

import json
import math

import pandas as pd
import pytest

from tests.cli import OPT, TINY, CommandLine

KNOBS = ("exprune.lam=1e-7", "exprune.stages=[8,16]", "head.tau=0.1", "head.stages=[8,16]", "seed=2201")
ARMS = ["eager", "dense", "zeros", "stopped", "head"]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_decoding(command: CommandLine, threads: str) -> None:
    few = ("--rounds", "2", "--tokens", "12", "--prompt", "8", "--drop-tokens", "40", "--threads", threads)
    outcome = command("benchmarks/decode.py", *OPT, *KNOBS, *TINY[:2], "trainer=cpu", *few, "--json", "decode.json")
    assert outcome.code == 0, outcome.err
    report = json.loads((outcome.folder / "decode.json").read_text())
    assert set(ARMS) <= set(report["arms"]) and all(speed > 0 for speed in report["arms"].values())
    assert report["of_arm"]["dense"]["ratio"] == 1 and report["of_arm"]["zeros"]["same_tokens"] == 1
    for arm in ARMS[1:]:
        of = report["of_arm"][arm]
        assert math.isclose(sum(of["parts"].values()), 1) and min(of["parts"].values()) >= 0 and 0 < of["read"] <= 1
        assert of["interval"][0] <= of["ratio"] <= of["interval"][1]
    assert math.isfinite(report["drop"]) and report["drops"]["dense"] == report["drops"]["zeros"] == 0
    assert report["changed"]["zeros"] == 0 and report["drop_tokens"] == 40
    assert report["command"].startswith("python benchmarks/decode.py model=opt")
    assert "tokens/s" in outcome.out and "GB/s" in outcome.out


def test_the_kernels_alone(command: CommandLine) -> None:
    outcome = command("benchmarks/ffn.py", "--hidden", "64", "--rounds", "2", "--megabytes", "1", "--csv", "ffn.csv")
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(outcome.folder / "ffn.csv")
    assert set(table["dtype"]) == {"float32", "float16"} and (table["over_torch"] > 0).all()
    assert table["bound"].iloc[-1] == pytest.approx(1.0) and table["bound"].max() == pytest.approx(9.14, abs=0.01)
