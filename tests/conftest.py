"""What every test relies on; the command line with one cache for the session."""

from pathlib import Path

import pytest
import torch

import exprune.lab  # noqa: F401  repairs torchvision before anything imports it
from tests.cli import CommandLine

torch.set_num_threads(1)  # the tensors here are tiny


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Processed data and weights, made once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(
    tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> CommandLine:
    """Runs an entry point in a fresh folder."""
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    folder = tmp_path / "run"
    folder.mkdir()
    return CommandLine(folder, monkeypatch, capfd)
