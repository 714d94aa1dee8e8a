"""Every command, Python block, link and table of the documents is correct."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import OPT, ROOT, TINY, CommandLine

PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def _commands() -> list[list[str]]:
    blocks = [block for path in (ROOT / "README.md", *PAGES) for block in _blocks(path, "bash")]
    parts = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    # What measures for hours is named by a list of its own (tests/test_reproduce.py).
    ours = ("python evaluate.py", "python train.py")
    return [shlex.split(part) for part in dict.fromkeys(parts) if part.startswith(ours)]


@pytest.mark.parametrize("words", [c for c in _commands() if "experiment" not in " ".join(c)], ids=" ".join)
def test_commands(command: CommandLine, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "-m" not in words:  # W&B takes longer than the run that it tracks; sweeps show that it tracks
        monkeypatch.setenv("WANDB_MODE", "disabled")
    tiny = TINY if words[1] == "evaluate.py" else [s for s in TINY if not s.startswith("bootstrap")]
    tiny = (*tiny, *OPT, "model.network.hidden=64") if "model=opt" in words else tiny  # terms for the first test
    outcome = command(words[1], *words[2:], *tiny)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if _blocks(path, "python")], ids=_name)
def test_python(path: Path, tmp_path: Path) -> None:
    """All blocks of a document, in a process of its own, as a reader runs it: nothing that these tests import helps."""
    (tmp_path / "snippet.py").write_text("\n".join(_blocks(path, "python")))
    outcome = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("% saved") >= len(re.findall(r"print\(run\.flops\)", path.read_text())) > 0


def test_readme_has_no_long_line() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []


def _anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub creates them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_files_and_modules_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"(?:python|bash) ((?:results|benchmarks)/[\w/]+\.(?:py|sh))", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"`?(exprune\.(?:core|lab)(?:\.[a-z_]+)+)", text):
        place = ROOT / "src" / module.replace(".", "/")
        parent = place.parent
        assert any(p.exists() for p in (place, place.with_suffix(".py"), parent.with_suffix(".py"))), module


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_a_page_opens_with_what_it_answers(path: Path) -> None:
    title, _, first, *_ = path.read_text().splitlines()
    assert title.startswith("# ") and first.startswith("*") and "?" in first


def test_tables_are_those_of_the_measurements(command: CommandLine) -> None:
    outcome = command("results/make/tables.py", "--check")
    assert outcome.code == 0, outcome.err


def test_a_table_that_differs_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, changed = ROOT / "docs" / "results" / "within_a_drop.md", tmp_path / "changed.md"
    monkeypatch.syspath_prepend(str(ROOT / "results" / "make"))
    import tables

    there = os.path.relpath(ROOT / "results", tmp_path)  # where its links lead
    right = page.read_text().replace("](../../results/", f"]({there}/")
    changed.write_text(right.replace("| Calibrated", "| Callibrated", 3))
    assert changed.read_text() != right
    monkeypatch.setattr(tables, "DOCUMENTS", (changed,))
    monkeypatch.setattr(tables, "TABLES", {name: functools.cache(make) for name, make in tables.TABLES.items()})
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert changed.read_text() == right
