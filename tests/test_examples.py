"""Every script of the gallery runs, prints something, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"timm_model": "timm", "lm_evaluation_harness": "lm_eval"}  # packages of extras


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    if script.stem in NEEDS:
        pytest.importorskip(NEEDS[script.stem])
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests run beside it
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=alone
    )
    assert done.returncode == 0, done.stderr
    assert "saved" in done.stdout
    assert len(script.read_text().splitlines()) <= 40
