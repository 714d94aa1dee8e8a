"""Run the command lines of the list of measurements."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from networks import RESULTS


def command(line: str, into: Path, work: Path) -> list[str]:
    """Return the words of a command line of the list, with the folders filled in."""
    places = {"{into}": into, "{work}": work, "{results}": RESULTS}
    words = shlex.split(line)
    for place, path in places.items():
        words = [word.replace(place, str(path)) for word in words]
    return words


def ran(words: Sequence[str], into: Path) -> int:
    """Run a command in the repository and return its exit code; NAME=VALUE words before it set its environment."""
    program = next(k for k, word in enumerate(words) if "=" not in word)
    settings = dict(word.split("=", 1) for word in words[:program])
    python = [sys.executable if word == "python" else word for word in words[program : program + 1]]
    environment = {**os.environ, "EXPRUNE_RESULTS_INTO": str(into), **settings}
    return subprocess.run([*python, *words[program + 1 :]], cwd=RESULTS.parent, env=environment, check=False).returncode


def draw(line: str, into: Path) -> None:
    """Run a command that draws. A module runs in this process, since its imports take longer than the drawing."""
    words = command(line, into, into)
    if words[1] == "-m":
        with contextlib.redirect_stdout(io.StringIO()):  # without the table that it prints
            import_module(words[2]).main(words[3:])
    elif code := ran(words, into):
        sys.exit(f"error: {shlex.join(words)}: ended with exit code {code}")
