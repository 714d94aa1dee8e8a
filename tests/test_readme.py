"""Every command and every Python block of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import ROOT, TINY, CommandLine

README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands() -> list[list[str]]:
    parts = [part for block in _blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    return [shlex.split(part) for part in parts if part.strip().startswith("python ")]


@pytest.mark.parametrize("words", [c for c in _commands() if "experiment" not in " ".join(c)], ids=" ".join)
def test_commands(command: CommandLine, words: list[str]) -> None:
    tiny = TINY if words[1] == "evaluate.py" else [s for s in TINY if not s.startswith("bootstrap")]
    outcome = command(words[1], *words[2:], *tiny)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("code", _blocks("python"), ids=range(len(_blocks("python"))))
def test_python(code: str, tmp_path: Path) -> None:
    """In a process of its own, as a reader runs it: nothing that these tests import helps it."""
    (tmp_path / "snippet.py").write_text(code)
    outcome = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "saved" in outcome.stdout


def test_files_that_it_names_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert named and [name for name in named if not (Path(ROOT) / name).exists()] == []


@pytest.mark.parametrize("which", [[], ["--searches"]], ids=["summary", "searches"])
def test_summary_is_that_of_the_tables(command: CommandLine, which: list[str]) -> None:
    outcome = command("results/summary.py", *which)
    assert outcome.code == 0, outcome.err
    assert outcome.out in README
