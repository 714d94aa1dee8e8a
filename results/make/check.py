"""Find what is out of date in results and the documents, as far as possible without measuring."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from commands import command, draw
from measurements import ENTRIES, Entry
from networks import RESULTS
from PIL import Image
from tables import stale

_CHECKPOINTS = RESULTS.parent / "checkpoints"
_MAY_DIFFER = 0.002  # share of a figure's pixels: processors round differently


def check(entries: Sequence[Entry], documents: bool) -> int:
    """Print a line for everything that is out of date, and what cannot be checked this way.

    Args:
        entries: the measurements to check.
        documents: also check the documents, and look for files in results that no entry makes.

    Returns:
        1 if anything is out of date, else 0.
    """
    lines = [line for entry in entries for line in (*_missing(entry), *_short(entry))]
    with tempfile.TemporaryDirectory() as folder:
        lines += [line for entry in entries for line in _figures(entry, Path(folder))]
    if documents:
        lines += [f"{file}: no entry of results/make/measurements.py makes it" for file in _nobodys()]
        lines += [f"{path.name}: not what the tables give; python results/make/tables.py" for path in stale()]
    print(*lines, f"out of date: {len(lines)}", sep="\n")
    print("\nCannot be told without measuring:\n* whether today's code, libraries and data still give the tables")
    if figures := [file for entry in entries if not entry.draws for file in entry.makes if file.endswith(".png")]:
        print(f"* whether figures that are drawn while measuring are true: {', '.join(figures)}")
    for weights, files in _not_released(entries).items():
        print(f"* what {weights} gave, which is not in checkpoints: {', '.join(files)}")
    return int(bool(lines))


def _there(entry: Entry) -> list[str]:
    return [file for file in entry.makes if (RESULTS / file).exists()]


def _missing(entry: Entry) -> Iterator[str]:
    for file in entry.makes:
        if not (RESULTS / file).exists():
            yield f"{file}: missing; python results/reproduce.py {entry.name} ({entry.takes})"


def _short(entry: Entry) -> Iterator[str]:
    """Yield a line if the table of a sweep does not have one row for each setting."""
    file, jobs = entry.makes[0], entry.jobs()
    if jobs and (RESULTS / file).exists() and (rows := len(pd.read_csv(RESULTS / file))) != jobs:
        yield f"{file}: {rows} rows for {jobs} settings; python results/reproduce.py {entry.name} ({entry.takes})"


def _figures(entry: Entry, folder: Path) -> Iterator[str]:
    """Draw the figures that depend on tables only, and yield a line for each that differs."""
    tables = [Path(word) for word in command(entry.draws, folder, folder) if word.endswith(".csv")]
    if not entry.draws or not all(table.exists() for table in tables):
        return
    draw(entry.draws, folder)
    for file in _there(entry):
        if file.endswith(".png") and (why := _unlike(RESULTS / file, folder / file)):
            yield f"{file}: {why}; python results/reproduce.py --draw {entry.name}"


def _unlike(stored: Path, drawn: Path) -> str | None:
    """Return how a figure differs from its tables; None if it does not, or if another Matplotlib version drew it."""
    with Image.open(stored) as old, Image.open(drawn) as new:
        if f"version{matplotlib.__version__}," not in old.info.get("Software", ""):
            return None
        if old.size != new.size:
            return "not as it is drawn now"
        apart = np.abs(np.asarray(old.convert("RGB"), dtype=int) - np.asarray(new.convert("RGB"), dtype=int)).max(2)
    return "not what its tables give" if (apart > 32).mean() > _MAY_DIFFER else None


def _nobodys() -> list[str]:
    made = {file for entry in ENTRIES.values() for file in entry.makes}
    files = [path for path in RESULTS.rglob("*") if path.suffix in (".csv", ".json", ".png")]
    return sorted({path.relative_to(RESULTS).as_posix() for path in files} - made)


def _not_released(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the weights that tables name but checkpoints does not contain, each with its tables."""
    found: dict[str, list[str]] = {}
    for file in (file for entry in entries for file in _there(entry) if file.endswith(".csv")):
        names = pd.read_csv(RESULTS / file).get("checkpoint", pd.Series(dtype=str)).unique()
        for name in names:
            if not name.startswith("package:") and not (_CHECKPOINTS / name).exists():
                found.setdefault(name, []).append(file)
    return found
