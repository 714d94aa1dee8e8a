"""The list of what is measured, and the command that measures it."""

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from tests.cli import ROOT, TINY, CommandLine

BEING_MEASURED = {"language_models/piqa", "exchangeability/theorem"}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "results" / "make"))
    monkeypatch.syspath_prepend(str(ROOT / "results"))
    return importlib.import_module("reproduce")


def measurements() -> ModuleType:
    return importlib.import_module("measurements")


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
    """Each setting of each network once, whatever its value."""
    known: set[str] = set()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for line in (line for entry in reproduce.ENTRIES.values() for line in entry.steps.values()):
            words = [word for word in shlex.split(line) if word != "python"]
            if words[0] != "evaluate.py":
                continue
            overrides = [word for word in words[1:] if word != "-m" and not word.startswith("hydra.")]
            single = [word if "[" in word else word.partition(",")[0] for word in overrides]
            kinds = {
                word if re.match("model|data|experiment|exprune=", word) else word.partition("=")[0] for word in single
            }
            if not kinds <= known:
                compose("evaluate", single)
            known |= kinds
    assert len(known) > 30


def test_the_documents_name_what_there_is(reproduce: ModuleType) -> None:
    names = {name for path in DOCUMENTS for name in re.findall(r"reproduce\.py '?(\w[\w/*]*)", path.read_text())}
    assert len(names) > 20
    for name in names:
        place = re.sub("NETWORK|NAME|WHAT", "*", name)
        assert reproduce.chosen([place], reproduce.ENTRIES), name


def tiny(reproduce: ModuleType, folder: Path) -> dict:
    """A table and a plot of two runs on embedded data, with a step between that fails until a file is there."""
    runs = {"two": f"exprune.tau=0.1,0.3 {' '.join(TINY)}"}
    entry = measurements().sweeps("gnn", "two", "two settings", "1 min", "model=gnn data=nci", runs, plot=True)
    (first, line), (last, table) = entry.steps.items()
    waiting = f"python -c 'import sys; from pathlib import Path; sys.exit(not Path(\"{folder}/there\").exists())'"
    steps = {first: line, "wait": waiting, last: table}
    return {"gnn/two": type(entry)(**{**vars(entry), "steps": steps})}


def test_a_table_is_made_and_goes_on_where_it_was_interrupted(
    reproduce: ModuleType, tmp_path: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, arguments, outside = tiny(reproduce, tmp_path), ["gnn/two", "--into", str(tmp_path)], reproduce.ran
    ran: list[str] = []

    def inside(words: Sequence[str], into: Path) -> int:
        """In this process, which has imported what each command needs; Python itself in one of its own."""
        ran.append(words[1])
        if words[1] == "-m":
            importlib.import_module(words[2]).main(words[3:])
            return 0
        return command(*words[1:]).code if words[1] == "evaluate.py" else outside(words, into)

    monkeypatch.setattr(reproduce, "ran", inside)
    with pytest.raises(SystemExit, match=r"^error: gnn/two, 2 of 3 \(wait\): ended with exit code 1; [^\n]*$"):
        reproduce.main(arguments, entries)
    results = sorted(tmp_path.glob("multirun/gnn_two/two/*/result.json"))
    assert [json.loads(file.read_text())["tau"] for file in results] == [0.1, 0.3]
    (tmp_path / "there").touch()
    assert reproduce.main(arguments, entries) == 0
    assert ran == ["evaluate.py", "-c", "-c", "-m"]  # what had ended is not run again
    assert list(pd.read_csv(tmp_path / "gnn" / "two.csv")["tau"]) == [0.1, 0.3]
    assert (tmp_path / "gnn" / "two.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "multirun" / "gnn_two").exists()


def test_a_changed_command_is_run_again(reproduce: ModuleType, tmp_path: Path) -> None:
    """In processes of their own, with the folder of the tables and the settings before the command."""
    code = "import os, sys; open(sys.argv[1], 'a').write(os.environ['SAID'] + os.environ['EXPRUNE_RESULTS_INTO'])"
    for said in ("one ", "one ", "other "):
        (tmp_path / "one.csv").unlink(missing_ok=True)
        steps = {"write": f"SAID='{said}' python -c \"{code}\" {{work}}.txt", "fail": "python -c 'raise SystemExit(3)'"}
        entry = measurements().Entry("one", "", "", steps, ("one.csv",))
        with pytest.raises(SystemExit, match="exit code 3"):
            reproduce.measure(entry, tmp_path, tmp_path / "work")
    assert (tmp_path / "work.txt").read_text() == f"one {tmp_path}other {tmp_path}"


def test_nothing_is_out_of_date(reproduce: ModuleType) -> None:
    check = importlib.import_module("check")
    for entry in reproduce.ENTRIES.values():
        assert entry.name in BEING_MEASURED or not list(check._missing(entry))
        assert not list(check._short(entry))
    assert not check._nobodys()


@pytest.mark.parametrize(
    "network", [pytest.param("gnn", id="gnn"), pytest.param("[!g]*", id="others", marks=pytest.mark.slow)]
)
def test_figures_are_of_their_tables(reproduce: ModuleType, network: str, tmp_path: Path) -> None:
    check = importlib.import_module("check")
    entries = [entry for entry in reproduce.chosen([f"{network}/*"], reproduce.ENTRIES) if entry.draws]
    assert len(entries) >= 3
    assert [line for entry in entries for line in check._figures(entry, tmp_path)] == []


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
