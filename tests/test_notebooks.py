"""Every notebook runs, from its own folder and from the repository, and is kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cli import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"pareto", "sites", "your_own_model"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stands_without_outputs_and_says_what_it_is(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert _outputs(notebook) == []
    assert not any(cell.get("execution_count") for cell in notebook.cells)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and f"notebooks/{path.name}" in first.source


@pytest.mark.parametrize(
    ("name", "where"), [*((path.name, "notebooks") for path in NOTEBOOKS), ("pareto.ipynb", ".")], ids=str
)
def test_runs(name: str, where: str, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = ROOT / "notebooks"
    before = set(folder.iterdir())
    notebook = nbformat.read(folder / name, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / where)}}).execute()  # raises
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook)), "shows no figure"
    assert set(folder.iterdir()) == before
