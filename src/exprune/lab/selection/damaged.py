"""Files of studies that were cut: a worker was killed, a disk was full, a copy did not end."""

import contextlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from exprune.core.errors import SettingError

log = logging.getLogger(__name__)

_NEW = 2  # bytes: SQLite takes a file that is shorter for a new one


def journal(path: Path) -> JournalFileBackend:
    """Optuna's journal of whole lines: one that its writer did not end is ended, or dropped with a line of ours.

    Raises:
        SettingError: it holds anything else than records.
    """
    lock = _WholeLines(path)
    if path.is_file():
        _say_if_empty(path, 1)
        lock.acquire()
        lock.release()
        _check_records(path)
    return JournalFileBackend(str(path), lock)


class _WholeLines(JournalFileSymlinkLock):
    """Held while a record is appended: what a writer that was killed left of its own would make both unreadable."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            _end_last_line(self.path)
        except BaseException:
            self.release()
            raise
        return held


def _end_last_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        step, rest = 4096, b""  # read from the end: a journal may be long, its records are short
        while len(rest) < size and b"\n" not in rest:
            file.seek(max(0, size - step))
            rest = file.read()
            step *= 2
        cut = rest.rpartition(b"\n")[2]
        if not cut:
            return
        if _is_record(cut):  # but for the end of the line all is there
            file.write(b"\n")
            return
        if not cut.startswith(b"{"):  # never a record: some other file
            raise SettingError(f"search.storage={path}: its last line is no record of a study; name another file")
        file.truncate(size - len(cut))
    log.warning(
        "%s: its last record was cut and is dropped (%d bytes); what it told of a trial is lost", path, len(cut)
    )


def _check_records(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not _is_record(line):  # else another worker is writing it
                raise SettingError(
                    f"search.storage={path}: line {number} is no record of a study; delete it, or name another file"
                )


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # of UTF-8, too
        return False


def check_database(url: str) -> None:
    """Refuse an SQLite database that is damaged, of which SQLite itself says nothing before it meets the damage.

    Raises:
        SettingError: parts of it are missing or it contradicts itself.
    """
    with contextlib.suppress(ArgumentError):  # Optuna says what is wrong with it
        address = make_url(url)
        if address.get_backend_name() != "sqlite" or not address.database or not Path(address.database).is_file():
            return
        path = Path(address.database)
        if _say_if_empty(path, _NEW):
            return
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            try:
                found = _damage(connection, path)
            except sqlite3.DatabaseError as error:
                found = str(error)
        if found:
            found = " ".join(found.split())
            raise SettingError(f"search.storage={url}: damaged ({found}); delete {path}, or name another")


def _damage(connection: sqlite3.Connection, path: Path) -> str | None:
    """What is wrong with a database; None where nothing is."""

    def told(pragma: str) -> Any:
        return connection.execute(f"PRAGMA {pragma}").fetchone()[0]

    connection.execute("BEGIN")  # nobody writes to the file from the first reading to the end
    if (found := told("quick_check(1)")) != "ok":
        return str(found)
    expected, there = told("page_count") * told("page_size"), path.stat().st_size
    if told("journal_mode") != "wal" and there < expected:  # SQLite takes what its last page lacks for zeros
        return f"{there} bytes of {expected}"
    return None


def _say_if_empty(path: Path, least: int) -> bool:
    size = path.stat().st_size
    if size < least:
        log.warning("%s: holds no study (%d bytes); a search begins anew there", path, size)
    return size < least
