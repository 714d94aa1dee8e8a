"""Optuna's studies: opened with their storage and sampler, also where a file was cut (a worker killed, a disk full)."""

import contextlib
import json
import logging
import os
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from exprune.core.errors import SettingError

log = logging.getLogger(__name__)

_NEW = 2  # bytes: SQLite takes a file that is shorter for a new one
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_SAMPLERS = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}


def open_study(cfg: DictConfig, name: str, about: dict[str, Any]) -> optuna.Study:
    """The study of that name, made where there is none: two objectives, the drop (down) and the FLOPs saved (up).

    ``about`` is what its trials are of; a study of the same name must be about the same.

    Raises:
        SettingError: the search is unknown, the storage cannot be reached, or the study is about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # the heartbeat
    name = cfg.search.study or name
    text = json.dumps(about, sort_keys=True)
    study, known, trials = _opened(name, cfg)
    if known is None:
        study.set_user_attr("about", text)
    elif known != text:
        try:
            was = dict(json.loads(known))
        except (TypeError, ValueError):  # of some other program or version
            was = {"about": known}
        other = next(key for key in {**about, **was} if was.get(key) != about.get(key))
        texts = (json.dumps(of.get(other)) for of in (was, about))
        is_, asked = (text if len(text) <= 60 else f"{text[:57]}..." for text in texts)
        raise SettingError(
            f"search.study={name}: its trials are of another {other} ({is_}, not {asked}); name another study"
        )
    # Not the same suggestions again after a restart, nor those of another worker.
    study.sampler = _SAMPLERS[cfg.search.name](seed=hash((cfg.seed, os.getpid(), trials)) % 2**32)
    return study


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended, complete or stopped early."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """Those that were not stopped early."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _opened(name: str, cfg: DictConfig) -> tuple[optuna.Study, Any, int]:
    """The study, what it says it is about, and how many trials it has; all of it is read now, or refused now."""
    if cfg.search.name not in _SAMPLERS:
        raise SettingError(f"search.name={cfg.search.name}: tpe, nsga2 or none")
    where = cfg.search.storage
    for attempt in range(5):  # workers that start at once may both try to make the tables of a fresh file
        try:
            study = optuna.create_study(
                study_name=name, storage=_storage(cfg), directions=("minimize", "maximize"), load_if_exists=True
            )
            return study, study.user_attrs.get("about"), len(study.get_trials(deepcopy=False))
        except SettingError:
            raise
        except Exception as error:
            if attempt == 4 or (where is not None and "://" in where and not where.startswith("sqlite")):
                line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise SettingError(f"search.storage={where or 'null'}: cannot be opened ({line})") from error
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


def _storage(cfg: DictConfig) -> BaseStorage:
    where = cfg.search.storage
    if where is None:
        path = Path(cfg.paths.cache_dir).expanduser() / "studies.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        where = f"sqlite:///{path.absolute()}"
    if where.endswith(".journal"):
        return JournalStorage(journal(Path(where)))
    check_database(where)
    # A worker that dies leaves a trial that is running for ever; the heartbeat finds it and puts it back.
    return RDBStorage(
        where,
        heartbeat_interval=60,
        grace_period=180,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


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
