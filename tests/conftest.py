"""What every test relies on; the command line with one cache for the session."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import exprune.lab  # noqa: F401  repairs torchvision before anything imports it
from tests.cli import CommandLine

torch.set_num_threads(1)  # the tensors here are tiny


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Processed data and weights, made once for all tests, by whichever process needs them first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the processes' own folders lie side by side in it
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def texts_encoded_once() -> Iterator[None]:
    """The embedded corpus becomes tokens once a tokenizer: that takes longer than training a small network on them."""
    from exprune.lab.examples.language import text

    encode, known = text.encode, {}

    def encode_once(tokenizer: Any, texts: Mapping[str, str]) -> list[torch.Tensor]:
        key = tokenizer.to_str(), tuple(texts.items())
        if key not in known:
            known[key] = encode(tokenizer, texts)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "encode", encode_once)
        yield


@pytest.fixture
def command(
    tmp_path: Path,
    session_cache: Path,
    texts_encoded_once: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> CommandLine:
    """Runs an entry point in a fresh folder."""
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    folder = tmp_path / "run"
    folder.mkdir()
    return CommandLine(folder, monkeypatch, capfd)
