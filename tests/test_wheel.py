"""A release: its sdist, its wheel, and what pip installs without extras."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a clean copy, the wheel that is built from it alone, and ``site``, installed."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("exprune-*.tar.gz")
    shutil.rmtree(source)
    pip, options = [sys.executable, "-m", "pip", "--quiet"], ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(folder), str(sdist)], check=True)
    (wheel,) = folder.glob("exprune-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder


def test_a_release_contains_the_package_alone(built: Path) -> None:
    """Without ``conf``, weights and entry points: the command line is the repository's."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel, tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        of_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
        of_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    source = ROOT / "src"
    modules = {path.relative_to(source).as_posix() for path in (source / "exprune").rglob("*.py")}
    assert of_wheel == modules | {"exprune/py.typed"}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= of_sdist
    assert {f"src/{name}" for name in of_wheel} <= of_sdist
    assert {name.partition("/")[0] for name in of_sdist if "/" in name} == {"src"}


def test_the_version_is_one(built: Path) -> None:
    (metadata,) = (built / "site").glob("exprune-*.dist-info/METADATA")
    version = message_from_string(metadata.read_text())["Version"]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    dated = re.search(r"^date-released: (\d{4}-\d\d-\d\d)$", citation, flags=re.MULTILINE)
    assert dated and f"\nversion: {version}\n" in citation
    first = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert first[:2] == [("Unreleased", ""), (version, dated[1])]


def test_a_release_runs_without_the_repository(built: Path, tmp_path: Path) -> None:
    """The three calls, with what the wheel requires and nothing else that is installed."""
    there = tmp_path / "site"
    shutil.copytree(built / "site", there)
    for name in _closure("torch", set()):
        for top in {file.parts[0] for file in files(name) or () if file.parts[0] not in ("..", "__pycache__")}:
            place = next(iter(files(name))).locate().parents[0]
            origin = next(folder / top for folder in (place, *place.parents) if (folder / top).exists())
            if not (there / top).exists():
                (there / top).symlink_to(origin)
    code = """if True:
        import sys
        import torch
        import exprune
        from exprune.core import ExPrune, StatsTest, find_sites
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(9, 64), torch.nn.ReLU(), torch.nn.Linear(64, 99), torch.nn.ReLU(),
                                    torch.nn.Linear(99, 4)).eval()
        batches = list(torch.randn(8, 20, 9))
        with torch.no_grad(), ExPrune(find_sites(model, batches[0]), StatsTest(0.3)) as run:
            model(batches[0])
        print(run.flops)
        calibration = exprune.calibrate(model, batches[:6])
        with torch.no_grad(), exprune.prune(model, calibration, kl=0.05, batches=batches[6:]) as run:
            model(batches[6])
        print(exprune.__file__, run.flops, sep="\\n")
        assert not {"lightning", "hydra", "numpy.f2py", "transformers"} & sys.modules.keys()
    """
    environment = {**os.environ, "PYTHONPATH": str(there)}
    command = [sys.executable, "-S", "-c", code]  # -S: nothing else that is installed
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("% saved") == 2 and str(there) in outcome.stdout
