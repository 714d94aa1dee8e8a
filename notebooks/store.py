"""Runs notebooks and stores what they show: python notebooks/store.py [NAME...]"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def ran(path: Path, where: Path = HERE) -> nbformat.NotebookNode:
    """A notebook with what it shows when it runs in a folder."""
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(where)}})
    return client.execute()


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1"}  # as the tests run them: figures of a training depend on it
    for name in sys.argv[1:] or [path.stem for path in sorted(HERE.glob("*.ipynb"))]:
        nbformat.write(ran(HERE / f"{name}.ipynb"), HERE / f"{name}.ipynb")
