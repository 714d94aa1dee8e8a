"""Measure the tables and figures that the documents report, as listed in results/make/measurements.py.

    python results/reproduce.py --list              # the measurements, their times and their files
    python results/reproduce.py gnn/input_order     # run this one; an interrupted run resumes
    python results/reproduce.py 'gnn/*' --commands  # print the commands without running them
    python results/reproduce.py --check             # list tables, figures and documents that are out of date
    python results/reproduce.py --draw              # redraw all figures that depend on tables only

EXPRUNE_DATA_DIR is the data folder. A measurement replaces its files in results; --into writes to another folder, for
comparison.
"""

import argparse
import fnmatch
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent
sys.path.insert(0, str(RESULTS / "make"))

from commands import command, draw, ran  # noqa: E402
from measurements import ENTRIES, Entry  # noqa: E402


def chosen(patterns: Sequence[str], entries: Mapping[str, Entry]) -> list[Entry]:
    """Return the entries with these names; ``*`` matches any text.

    Raises:
        SystemExit: If a name matches no entry.
    """
    found: dict[str, Entry] = {}
    for pattern in patterns:
        names = fnmatch.filter(entries, pattern)
        if not names:
            near = [name for name in entries if set(name.split("/")) & set(pattern.split("/"))]
            sys.exit(f"error: {pattern or 'no name'}: no such measurement; {', '.join(near) or 'see --list'}")
        found |= {name: entries[name] for name in names}
    return list(found.values())


def measure(entry: Entry, into: Path, work: Path) -> None:
    """Run the unfinished steps of an entry, and write its files below a folder.

    Args:
        entry: the measurement.
        into: the folder of its tables and figures.
        work: its working folder. An interrupted run resumes from it; it is removed at the end.

    Raises:
        SystemExit: If a step failed.
    """
    for number, (step, line) in enumerate(entry.steps.items(), 1):
        words = command(line, into, work)
        done, told = work / f"{step}.done", shlex.join(words)
        where = f"{entry.name}, {number} of {len(entry.steps)} ({step})"
        if done.exists() and done.read_text() == told:
            print(f"{where}: measured already", flush=True)
            continue
        print(f"{where}: {told}", flush=True)
        code = ran(words, into)
        if code:
            sys.exit(f"error: {where}: ended with exit code {code}; started again, it goes on from here")
        work.mkdir(parents=True, exist_ok=True)
        done.write_text(told)
    for file, source in entry.copies.items():
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / source, into / file)
    shutil.rmtree(work, ignore_errors=True)
    for file in entry.makes:
        print(f"{into / file}: {'made' if (into / file).exists() else 'missing'}")


def told(entry: Entry) -> str:
    """A line of --list."""
    kinds = Counter(Path(file).suffix.lstrip(".") for file in entry.makes)
    files = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{entry.name:<36} {entry.takes:>7}  {files:<13} {entry.about}"


def _work(entry: Entry, into: Path) -> Path:
    return (ROOT if into == RESULTS else into) / "multirun" / entry.name.replace("/", "_")


def main(arguments: Sequence[str], entries: Mapping[str, Entry] = ENTRIES) -> int:
    parser = argparse.ArgumentParser(
        prog="python results/reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NETWORK/WHAT", help="what is meant; all, if none is named")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--list", action="store_true", help="print names, times and what is shown")
    does.add_argument("--commands", action="store_true", help="print the commands")
    does.add_argument("--check", action="store_true", help="say what is out of date; exit code 1 if anything is")
    does.add_argument("--draw", action="store_true", help="draw figures anew from their tables")
    parser.add_argument("--into", type=Path, default=RESULTS, metavar="FOLDER", help="where what is made goes")
    options = parser.parse_args(arguments)
    found, into = chosen(options.names or ["*"], entries), options.into.resolve()
    if options.list:
        print(*map(told, found), sep="\n")
    elif options.commands:
        for entry in found:
            lines = [command(line, into, _work(entry, into)) for line in entry.steps.values()]
            print(f"# {entry.name}: {', '.join(entry.makes)}", *map(shlex.join, lines), sep="\n")
    elif options.check:
        from check import check  # with pandas and matplotlib

        return check(found, documents=not options.names)
    elif options.draw:
        for entry in found:
            if entry.draws:
                draw(entry.draws, into)
    elif not options.names:
        parser.error("name what to measure; --list says what there is")
    else:
        for entry in found:
            measure(entry, into, _work(entry, into))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
