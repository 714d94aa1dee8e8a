"""What went wrong, in one line; in a sweep, kept in the folder of the job."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from exprune.errors import SettingError
from exprune.files import named, write_whole

log = logging.getLogger(__name__)


def known(error: BaseException | None) -> str | None:
    """The one line of an error that a setting or a file causes, also where Hydra wraps it; None for a bug."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    # The innermost says what is wrong; Hydra's wrappers say where in its code.
    for kind in (SettingError, (HydraException, OmegaConfBaseException)):
        for link in chain:
            if isinstance(link, kind) and str(link):
                return " ".join(str(link).split())
    if isinstance(chain[0], PermissionError | NotADirectoryError | FileExistsError):
        if chain[0].filename is None:  # raised by a library, with words of its own
            return " ".join(str(chain[0]).split()) or None
        return f"{chain[0].filename}: {chain[0].strerror}; name a folder that can be written to"
    return None


def one_line(error: Exception) -> str:
    """The one line of any error."""
    return known(error) or shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


@contextlib.contextmanager
def recorded(folder: Path, number: int, overrides: str) -> Iterator[None]:
    """Run a job of a sweep: an exception ends here and is kept in ``error.json`` of the job's folder.

    The file is there from the start and goes when the job ends well, so that a killed job is listed too. An exit
    (Ctrl-C, or a time limit after which SLURM starts the job again) is no failure and passes, also where another
    exception took its place on the way out.
    """
    file = folder / "error.json"

    def record(message: str) -> None:
        text = json.dumps({"job": number, "overrides": overrides, "error": message})
        write_whole(file, lambda partial: partial.write_text(text))

    record("did not end: killed, or still running")
    try:
        yield
    except Exception as error:
        if (stop := _exit_before(error)) is not None:
            raise stop from None
        record(one_line(error))
        traceback = error if known(error) is None else None
        log.error("job %d failed, the sweep goes on: %s", number, one_line(error), exc_info=traceback)
    else:
        file.unlink()


def _exit_before(error: BaseException | None) -> BaseException | None:
    """The exit that was under way when ``error`` was raised, in a ``finally`` of a library; None where none was."""
    while isinstance(error, Exception):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt | SystemExit) else None


def failed_jobs(folder: Path) -> dict[Path, str]:
    """The folders of the jobs of a sweep that failed, in their order: "overrides: what went wrong".

    Records from before the sweep began are of an earlier one in the same folder.
    """
    start = folder / "multirun.yaml"  # written by Hydra before the first job
    begun = start.stat().st_mtime_ns if start.exists() else 0
    files = [file for file in folder.rglob("error.json") if file.stat().st_mtime_ns >= begun]
    records = [(*_record(file), file.parent) for file in files]
    return {job: line for _, line, job in sorted(records)}


def _record(file: Path) -> tuple[float, str]:
    """The number of a job that failed, and its line. One whose record is damaged has failed too, and comes last."""

    def read(file: Path) -> tuple[float, str]:
        record = json.loads(file.read_text())
        return float(record["job"]), f"{record['overrides']}: {record['error']}"

    try:
        return named(file, read)
    except SettingError as error:
        return math.inf, str(error)
