"""Every notebook is stored with its output, runs from its own folder and from the repository, and gives that output."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.cli import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Of what is trained on the way, digits depend on the processor; of what is read from tables none does.
TRAINED = {"exchangeability", "sites", "your_own_model"}
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _figures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]


def _texts(notebook: nbformat.NotebookNode) -> Iterator[str]:
    for output in _outputs(notebook):
        yield output.get("data", {}).get("text/plain", output.get("text", ""))


def _words(text: str) -> list[str]:
    return _NUMBER.sub("#", re.sub(r"[-+](?= ?\d)", "", text)).split()


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        "pareto",
        "sites",
        "your_own_model",
        "language_model",
        "exchangeability",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_with_what_it_shows_and_says_what_it_is(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
    assert _figures(notebook)
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in _outputs(notebook))
    assert path.stat().st_size < 500_000
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and f"notebooks/{path.name}" in first.source


@pytest.mark.parametrize(
    ("path", "where"),
    [(path, ROOT if path.stem == "pareto" else FOLDER) for path in NOTEBOOKS],  # from either place
    ids=[path.stem for path in NOTEBOOKS],
)
def test_shows_it_again(path: Path, where: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(FOLDER))
    from store import ran

    before = set(FOLDER.iterdir())
    stored, shown = nbformat.read(path, 4), ran(path, where)
    assert {file for file in FOLDER.iterdir() if file.name != "__pycache__"} <= before
    assert [output.output_type for output in _outputs(shown)] == [output.output_type for output in _outputs(stored)]
    assert len(_figures(shown)) == len(_figures(stored))
    for old, new in zip(_texts(stored), _texts(shown), strict=True):
        assert _words(new) == _words(old), f"out of date: python notebooks/store.py {path.stem}"
        if path.stem not in TRAINED:
            assert new == old, f"out of date: python notebooks/store.py {path.stem}"
        elif "price" not in old and "kl" not in old:  # these span orders of magnitude
            assert _numbers(new) == pytest.approx(_numbers(old), rel=0.5, abs=10)
