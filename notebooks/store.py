"""Run notebooks and store their output: python notebooks/store.py [NAME...]"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def ran(path: Path, where: Path = HERE) -> nbformat.NotebookNode:
    """Run a notebook in a folder and return it with its output, without what libraries write to stderr."""
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(where)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1"}  # as in the tests: the result of a training depends on it
    for name in sys.argv[1:] or [path.stem for path in sorted(HERE.glob("*.ipynb"))]:
        nbformat.write(ran(HERE / f"{name}.ipynb"), HERE / f"{name}.ipynb")
