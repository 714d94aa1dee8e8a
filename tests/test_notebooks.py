"""Every notebook runs, from its own folder and from the repository; some are stored with their output."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cli import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWN = {"your_own_model"}  # kept with outputs, so that they can be read where nothing runs


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _figures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"pareto", "sites", "your_own_model"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stands_as_it_is_to_be_read_and_says_what_it_is(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    if path.stem in SHOWN:
        assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
        assert _figures(notebook) and not any(
            o.output_type == "error" or o.get("name") == "stderr" for o in _outputs(notebook)
        )
    else:
        assert _outputs(notebook) == []
        assert not any(cell.get("execution_count") for cell in notebook.cells)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and f"notebooks/{path.name}" in first.source


@pytest.mark.parametrize(
    ("name", "where"),
    [(path.name, "." if path.stem == "pareto" else "notebooks") for path in NOTEBOOKS],  # from either place
    ids=str,
)
def test_runs(name: str, where: str, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = ROOT / "notebooks"
    before = set(folder.iterdir())
    notebook = nbformat.read(folder / name, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / where)}}).execute()  # raises
    assert _figures(notebook), "shows no figure"
    assert set(folder.iterdir()) == before
