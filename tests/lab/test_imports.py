"""Answers that need no network come at once: importing torch and what uses it takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import ROOT

HEAVY = {"torch", "torchvision", "torch_geometric", "lightning", "torchmetrics", "transformers", "wandb", "pandas"}
PROGRAM = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate.py --help", "== Settings"),
        ("train.py --help", "== Settings"),
        ("evaluate.py --cfg job", "bootstrap: 2000"),
        ("evaluate.py exprune.tua=0.1", "Could not override 'exprune.tua'"),
        ("evaluate.py model=resnet99", "Could not find 'model/resnet99'"),
        ("evaluate.py split=train", "split=train"),
        ("evaluate.py data.limit=0", "data.limit=0"),
        ("evaluate.py checkpoint=nowhere.safetensors", "no such file"),
        ("evaluate.py exprune=optimal exprune.calibration=nowhere.safetensors", "no such file"),
        ("train.py static=magnitude static.sparsity=2", "static.sparsity=2"),
        ("train.py logger.mode=onlin", "logger.mode=onlin"),
    ],
)
def test_nothing_large_is_imported(command: str, says: str, tmp_path: Path) -> None:
    script, *arguments = command.split()
    program = f"import sys; sys.argv = {[str(ROOT / script), *arguments]}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert says in done.stdout + done.stderr
    (imported,) = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("imported:")]
    assert "hydra" in imported and not HEAVY & set(imported)


@pytest.mark.parametrize("setting", ["exprune.tau=0.7", "exprune.n=0", "exprune=optimal exprune.lam=-1"])
def test_what_a_heuristic_refuses_needs_torch_alone(setting: str, tmp_path: Path) -> None:
    arguments = ["evaluate.py", *setting.split()]
    program = f"import sys; sys.argv = {[str(ROOT / arguments[0]), *arguments[1:]]}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    (imported,) = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("imported:")]
    assert HEAVY & set(imported) == {"torch"}
