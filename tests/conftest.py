"""Fixtures for all tests, and the command line with one cache per session."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import exprune.lab  # noqa: F401  repairs torchvision before anything imports it
from tests.cli import CommandLine

torch.set_num_threads(1)  # the tensors here are tiny


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Processed data and weights, made once for all tests by the first process that needs them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the folders of the processes are next to each other in it
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def made_once() -> Iterator[None]:
    """Convert the embedded molecules to graphs and the embedded texts to tokens once, as this is slow."""
    from exprune.lab.examples.language import text
    from exprune.lab.examples.molecules import graphs

    process, encode, cut, known = graphs.process, text.encode, text.blocks, {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = make()
        return known[key]

    def cut_once(tokens: Sequence[torch.Tensor], context: int) -> Any:
        # The tokens are kept with the blocks, so that no other list gets their id.
        return once((id(tokens), context), lambda: (cut(tokens, context), tokens))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "process", lambda of: once(of.digest(), lambda: process(of)))
        patch.setattr(text, "encode", lambda *of: once((of[0].to_str(), *of[1].items()), lambda: encode(*of)))
        patch.setattr(text, "blocks", cut_once)
        yield


@pytest.fixture
def command(
    tmp_path: Path,
    session_cache: Path,
    made_once: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> CommandLine:
    """Run an entry point in a new folder."""
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    folder = tmp_path / "run"
    folder.mkdir()
    return CommandLine(folder, monkeypatch, capfd)
