"""Describe failures in one line; in a sweep, keep them in the folder of the job."""

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
    """The message of an error caused by a setting or a file, in one line, also if Hydra wraps it; None for a bug."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    # The innermost error says what is wrong; Hydra's wrappers only say where in its code.
    for kind in (SettingError, (HydraException, OmegaConfBaseException)):
        for link in chain:
            if isinstance(link, kind) and str(link):
                return " ".join(str(link).split())
    if isinstance(chain[0], PermissionError | NotADirectoryError | FileExistsError):
        if chain[0].filename is None:  # raised by a library with its own message
            return " ".join(str(chain[0]).split()) or None
        return f"{chain[0].filename}: {chain[0].strerror}; choose a folder that is writable"
    return None


def one_line(error: Exception) -> str:
    """Any error in one line."""
    return known(error) or shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


@contextlib.contextmanager
def recorded(folder: Path, number: int, overrides: str) -> Iterator[None]:
    """Run a job of a sweep. An exception ends here, and is kept in ``error.json`` in the job's folder.

    The file exists from the start, and is removed when the job succeeds, so a killed job is listed too. An exit
    (Ctrl-C, or a time limit after which SLURM restarts the job) is not a failure. It is passed on, even if a library
    replaced it by another exception.
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
    """The exit that was in progress when ``error`` was raised in a ``finally`` of a library; None if there was none."""
    while isinstance(error, Exception):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt | SystemExit) else None


def failed_jobs(folder: Path) -> dict[Path, str]:
    """The folders of the failed jobs of a sweep in order, each with a line "overrides: what went wrong".

    Records from before the sweep began belong to an earlier sweep in the same folder, and are ignored.
    """
    start = folder / "multirun.yaml"  # Hydra writes it before the first job
    begun = start.stat().st_mtime_ns if start.exists() else 0
    files = [file for file in folder.rglob("error.json") if file.stat().st_mtime_ns >= begun]
    records = [(*_record(file), file.parent) for file in files]
    return {job: line for _, line, job in sorted(records)}


def _record(file: Path) -> tuple[float, str]:
    """The number of a failed job, and its line. A job with a damaged record has failed too, and comes last."""

    def read(file: Path) -> tuple[float, str]:
        record = json.loads(file.read_text())
        return float(record["job"]), f"{record['overrides']}: {record['error']}"

    try:
        return named(file, read)
    except SettingError as error:
        return math.inf, str(error)
