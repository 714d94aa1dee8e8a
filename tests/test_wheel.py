"""What pip installs without extras."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path

from tests.cli import ROOT

_WITHOUT_EXTRA = re.compile(r"^([\w.\-]+)(?!.*extra *==)")


def _closure(name: str, known: set[str]) -> set[str]:
    """Return the names of a distribution and of all its requirements that are installed."""
    try:
        required = requires(name) or []
    except PackageNotFoundError:  # for another platform
        return known
    known.add(name)
    for requirement in required:
        found = _WITHOUT_EXTRA.match(requirement)
        if found and found[1] not in known:
            _closure(found[1], known)
    return known


def test_a_wheel_needs_torch_alone(tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("exprune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(there)
    assert (there / "exprune" / "py.typed").exists()
    for name in _closure("torch", set()):
        for top in {file.parts[0] for file in files(name) or () if file.parts[0] not in ("..", "__pycache__")}:
            place = next(iter(files(name))).locate().parents[0]
            origin = next(folder / top for folder in (place, *place.parents) if (folder / top).exists())
            if not (there / top).exists():
                (there / top).symlink_to(origin)
    code = """if True:
        import sys
        import torch
        from exprune.core import ExPrune, StatsTest, find_sites
        model = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.ReLU(), torch.nn.Linear(64, 9), torch.nn.ReLU())
        x = torch.randn(20, 9)
        with torch.no_grad(), ExPrune(find_sites(model, x), StatsTest(0.3)) as run:
            model(x)
        print(run.flops)
        assert not {"lightning", "hydra", "numpy.f2py", "transformers"} & sys.modules.keys()
    """
    environment = {**os.environ, "PYTHONPATH": str(there)}
    command = [sys.executable, "-S", "-c", code]  # -S: nothing else that is installed
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "saved" in outcome.stdout
