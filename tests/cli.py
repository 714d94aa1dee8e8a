"""Run the entry points as a user does, in this process."""

import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from joblib.externals.loky import get_reusable_executor

ROOT = Path(__file__).parents[1]

# Settings that make any command quick, and the smallest possible OPT; the resulting numbers are meaningless.
TINY = ("data.limit=64", "model.epochs=1", "bootstrap=50", "trainer=cpu")
OPT = ("model=opt", "data.vocabulary=512", "data.context=32", "model.network.hidden=32", "model.network.heads=2")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command: its exit code, its output, and the folder it ran in."""

    code: int
    out: str
    err: str
    folder: Path

    def runs(self) -> list[Path]:
        """The folders of its results."""
        return sorted(path.parent for path in self.folder.rglob("result.json"))

    def error_line(self) -> str:
        """The only line that reports an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error:")]
        return line


class CommandLine:
    """Run ``python SCRIPT.py ARGUMENT...`` in a folder of its own.

    Attributes:
        passes: Where measurements are cached. A command uses what earlier commands of the test have measured only with
            ``keeps_passes``; otherwise each command measures everything itself.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd
        self.passes, self.keeps_passes = folder.with_name("passes"), False
        monkeypatch.setattr("exprune.lab.evaluation.store.FOLDER", str(self.passes))

    def __call__(self, script: str, *arguments: str) -> Outcome:
        if not self.keeps_passes:
            shutil.rmtree(self.passes, ignore_errors=True)
        # Hydra composes the configuration once more, to see whether it requests a sweep. Ours never does, and this
        # takes longer than most errors.
        self.monkeypatch.setattr(Hydra, "get_mode", lambda *_, **named: None)
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        self.monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        self.capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if "hydra/launcher=parallel" in arguments:  # its processes wait for more work in the folder of this test
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        printed = self.capfd.readouterr()
        return Outcome(code, printed.out, printed.err, self.folder)
