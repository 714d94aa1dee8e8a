"""The source of Python's own standard library: the embedded text."""

import functools
import hashlib
import platform
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exprune.core.errors import SettingError

# These are not part of every installation (tests, tools, packages), or are generated tables.
_SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__"),
    *("encodings", "pydoc_data", "distutils", "lib2to3"),
}
_SHARES = {"test": 0.12, "valid": 0.06}  # of all files; the rest is for training
_DUPLICATE = 0.5  # share of a file's longer lines that also occur in another file
_LONGER = 20  # characters


@dataclass(frozen=True)
class Corpus:
    """Texts by file name in three parts, and their source."""

    source: str
    parts: Mapping[str, Mapping[str, str]]


@functools.cache  # because questions and their encoding both read it
def read_stdlib(data_dir: Path, cache_dir: Path) -> Corpus:
    """The standard library of the running Python; both folders are unused.

    The part of a file depends on its name only, so a file that is held out with one version of Python is never used for
    training with another.

    Raises:
        SettingError: If the library's source is not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not _SKIPPED.intersection(path.relative_to(root).parts) and path.is_file()
    )
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8", "ignore") for path in paths}
    if len(texts) < 100:
        raise SettingError(f"{root}: {len(texts)} Python files; this Python comes without its library's source")
    parts: dict[str, dict[str, str]] = {"train": {}, "valid": {}, "test": {}}
    for name, text in texts.items():
        if text.strip():
            parts[part_of(name)][name] = text
    parts["test"] = without_duplicates(parts["test"], parts["train"].values())
    parts["valid"] = without_duplicates(parts["valid"], [*parts["train"].values(), *parts["test"].values()])
    return Corpus(f"standard library of Python {platform.python_version()}", parts)


def part_of(name: str) -> str:
    """The part that a file belongs to, by a hash of its name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    if place < _SHARES["test"]:
        return "test"
    return "valid" if place < _SHARES["test"] + _SHARES["valid"] else "train"


def without_duplicates(texts: Mapping[str, str], others: Iterable[str]) -> dict[str, str]:
    """The texts that share less than half of their longer lines with any one of ``others``.

    Texts that are left out are not used anywhere, so they stay unseen with every version of Python.
    """
    owners: dict[str, list[int]] = defaultdict(list)
    for index, other in enumerate(others):
        for line in _longer_lines(other):
            owners[line].append(index)
    kept = {}
    for name, text in texts.items():
        lines = _longer_lines(text)
        shared = Counter(index for line in lines for index in owners.get(line, ()))
        if max(shared.values(), default=0) < _DUPLICATE * max(len(lines), 1):
            kept[name] = text
    return kept


def _longer_lines(text: str) -> set[str]:
    return {stripped for line in text.splitlines() if len(stripped := line.strip()) >= _LONGER}
