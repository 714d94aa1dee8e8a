"""The list of what is measured, and the command that measures it."""

import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir

from tests.cli import ROOT, TINY

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "results" / "make"))
    monkeypatch.syspath_prepend(str(ROOT / "results"))
    return importlib.import_module("reproduce")


def test_the_list(reproduce: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(reproduce.ENTRIES)
    assert all(re.search(r" (~?\d+ (min|h)|seconds)  ", line) and len(line) <= 120 for line in lines)
    assert reproduce.main(["gnn/search", "--commands"]) == 0
    told = capsys.readouterr().out
    assert "gnn/search_stats_test_trials.csv" in told and "search.trials=200 exprune=threshold" in told
    assert "{" not in told and f"--plot {ROOT / 'results' / 'gnn' / 'search.png'}" in told


@pytest.mark.parametrize("name", ["alexnet/search", "gnn/everything", "gnn/sear", ""])
def test_an_unknown_name_is_one_line(reproduce: ModuleType, name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        reproduce.main([name])
    assert str(stop.value).startswith(f"error: {name or 'no name'}: no such measurement") and "\n" not in str(
        stop.value
    )


def test_every_file_is_made_by_one_entry(reproduce: ModuleType) -> None:
    files = [file for entry in reproduce.ENTRIES.values() for file in entry.makes]
    assert len(files) == len(set(files))
    for entry in reproduce.ENTRIES.values():
        written = " ".join(entry.steps.values())
        for file in entry.makes:
            script = re.search(r"results/make/\w+\.py", written)
            assert file in entry.copies or f"{{into}}/{file}" in written or script, file
        assert not entry.draws or all("{into}" in word or "{work}" not in word for word in shlex.split(entry.draws))


def test_commands_are_of_evaluate(reproduce: ModuleType) -> None:
    """Of every table of the smallest network, and of the first of every other."""
    seen: set[str] = set()
    for entry in reproduce.ENTRIES.values():
        first = entry.name.partition("/")[0] not in seen
        seen.add(entry.name.partition("/")[0])
        for line in entry.steps.values():
            words = shlex.split(line.replace("{work}", "work"))
            assert (ROOT / words[-1]).exists() or words[0] == "python" or "=" in words[0], line
            if words[1] != "evaluate.py" or not (first or entry.name.startswith("gnn/")):
                continue
            overrides = [word for word in words[2:] if word != "-m" and not word.startswith("hydra.")]
            single = [word if "[" in word else word.partition(",")[0] for word in overrides]
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                compose("evaluate", single)


def test_the_documents_name_what_there_is(reproduce: ModuleType) -> None:
    names = {name for path in DOCUMENTS for name in re.findall(r"reproduce\.py '?(\w[\w/*]*)", path.read_text())}
    assert len(names) > 20
    for name in names:
        place = re.sub("NETWORK|NAME|MODEL", "*", name)
        assert reproduce.chosen([place], reproduce.ENTRIES), name


def tiny(reproduce: ModuleType, folder: Path) -> dict:
    """A table and a plot of two runs on embedded data, with a step between that fails until a file is there."""
    from measurements import sweeps

    runs = {"two": f"exprune.tau=0.1,0.3 {' '.join(TINY)}"}
    entry = sweeps("gnn", "two", "two settings", "1 min", "model=gnn data=nci", runs, plot=True)
    (first, line), (last, table) = entry.steps.items()
    waiting = f"python -c 'import sys; from pathlib import Path; sys.exit(not Path(\"{folder}/there\").exists())'"
    steps = {first: line, "wait": waiting, last: table}
    return {"gnn/two": type(entry)(**{**vars(entry), "steps": steps})}


def test_a_table_is_made_and_goes_on_where_it_was_interrupted(
    reproduce: ModuleType, tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(session_cache))
    entries, arguments = tiny(reproduce, tmp_path), ["gnn/two", "--into", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^error: gnn/two, 2 of 3 \(wait\): ended with exit code 1; [^\n]*$"):
        reproduce.main(arguments, entries)
    results = sorted(tmp_path.glob("multirun/gnn_two/two/*/result.json"))
    assert [json.loads(file.read_text())["tau"] for file in results] == [0.1, 0.3]
    (tmp_path / "there").touch()
    capfd.readouterr()
    assert reproduce.main(arguments, entries) == 0
    assert "1 of 3 (two): measured already" in capfd.readouterr().out
    import pandas as pd

    assert list(pd.read_csv(tmp_path / "gnn" / "two.csv")["tau"]) == [0.1, 0.3]
    assert (tmp_path / "gnn" / "two.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "multirun" / "gnn_two").exists()


def test_nothing_is_out_of_date(reproduce: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = reproduce.main(["--check"])
    *lines, last = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    missing = [line for line in lines if ": missing; python results/reproduce.py " in line]
    assert lines == missing and last == f"out of date: {len(missing)}" and code == bool(missing)


def test_what_is_out_of_date_is_told(
    reproduce: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check, commands = importlib.import_module("check"), importlib.import_module("commands")
    for module in (check, commands):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    folder = tmp_path / "resnet18"
    folder.mkdir()
    lines = (ROOT / "results" / "resnet18" / "beyond.csv").read_text().splitlines(keepends=True)
    (folder / "beyond.csv").write_text("".join(lines[:-2]))
    (folder / "beyond.png").write_bytes((ROOT / "results" / "resnet18" / "beyond.png").read_bytes())
    (folder / "other.csv").write_text("a\n1\n")
    monkeypatch.setattr(check, "stale", lambda: [Path("results.md")])
    monkeypatch.setattr(check, "ENTRIES", entries := {"resnet18/beyond": reproduce.ENTRIES["resnet18/beyond"]})
    assert reproduce.main(["--check"], entries) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("resnet18/beyond.csv: 11 rows for 13 settings; python results/reproduce.py")
    assert told[1].startswith("resnet18/beyond.png: not") and "--draw resnet18/beyond" in told[1]
    assert told[2].startswith("resnet18/other.csv: no entry") and told[3].startswith("results.md: not what the tables")
    assert told[4] == "out of date: 4"
    (folder / "beyond.csv").unlink()
    assert reproduce.main(["resnet18/beyond", "--check"], entries) == 1
    assert "resnet18/beyond.csv: missing; python results/reproduce.py resnet18/beyond (~2 h)" in capsys.readouterr().out
