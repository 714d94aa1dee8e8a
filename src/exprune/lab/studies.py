"""Open Optuna's studies with their storage and sampler, even if a file was truncated (worker killed, disk full)."""

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

_NEW = 2  # bytes; SQLite treats a shorter file as new
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_SAMPLERS = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}


def open_study(cfg: DictConfig, name: str, about: dict[str, Any]) -> optuna.Study:
    """Open the study of that name, or create it. Its objectives are the drop (minimised) and the FLOPs saved
    (maximised).

    Args:
        cfg: The configuration.
        name: The name, unless ``search.study`` sets another one.
        about: What determines its trials. A study of the same name must have the same values.

    Raises:
        SettingError: If the search is unknown, if the storage cannot be opened, or if the study has other values.
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
        except (TypeError, ValueError):  # written by another program or version
            was = {"about": known}
        other = next(key for key in {**about, **was} if was.get(key) != about.get(key))
        texts = (json.dumps(of.get(other)) for of in (was, about))
        is_, asked = (text if len(text) <= 60 else f"{text[:57]}..." for text in texts)
        raise SettingError(
            f"search.study={name}: its trials are of another {other} ({is_}, not {asked}); name another study"
        )
    # The seed differs between restarts and between workers, so that suggestions are not repeated.
    study.sampler = _SAMPLERS[cfg.search.name](seed=hash((cfg.seed, os.getpid(), trials)) % 2**32)
    return study


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended, complete or stopped early."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were not stopped early."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _opened(name: str, cfg: DictConfig) -> tuple[optuna.Study, Any, int]:
    """The study, its stored description, and its number of trials. Everything is read now, to find damage."""
    if cfg.search.name not in _SAMPLERS:
        raise SettingError(f"search.name={cfg.search.name}: must be tpe, nsga2 or none")
    where = cfg.search.storage
    for attempt in range(5):  # workers that start at the same time may all try to create the tables of a new file
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
    # A worker that dies leaves a trial in the state "running"; the heartbeat detects it and enqueues it again.
    return RDBStorage(
        where,
        heartbeat_interval=60,
        grace_period=180,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


def journal(path: Path) -> JournalFileBackend:
    """Optuna's journal, made of complete lines. An incomplete last line is completed, or dropped with a warning.

    Raises:
        SettingError: If it contains anything other than records.
    """
    lock = _WholeLines(path)
    if path.is_file():
        _say_if_empty(path, 1)
        lock.acquire()
        lock.release()
        _check_records(path)
    return JournalFileBackend(str(path), lock)


class _WholeLines(JournalFileSymlinkLock):
    """A lock held while a record is appended. It removes a killed writer's partial line."""

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
        if _is_record(cut):  # only the end of the line is missing
            file.write(b"\n")
            return
        if not cut.startswith(b"{"):  # it was never a record, so this is another kind of file
            raise SettingError(f"search.storage={path}: its last line is not a record of a study; name another file")
        file.truncate(size - len(cut))
    log.warning(
        "%s: its last record was cut and is dropped (%d bytes); its information on a trial is lost", path, len(cut)
    )


def _check_records(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not _is_record(line):  # an incomplete line is being written by another worker
                raise SettingError(
                    f"search.storage={path}: line {number} is not a record of a study; delete it, or name another file"
                )


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # also for invalid UTF-8
        return False


def check_database(url: str) -> None:
    """Refuse a damaged SQLite database. SQLite itself would not report damage before it reads the damaged part.

    Raises:
        SettingError: If parts of it are missing, or if it is inconsistent.
    """
    with contextlib.suppress(ArgumentError):  # Optuna reports an invalid address
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
            raise SettingError(f"search.storage={url}: damaged ({found}); delete {path}, or name another file")


def _damage(connection: sqlite3.Connection, path: Path) -> str | None:
    """A description of a database's damage; None if it is intact."""

    def told(pragma: str) -> Any:
        return connection.execute(f"PRAGMA {pragma}").fetchone()[0]

    connection.execute("BEGIN")  # no other process can write to the file during these checks
    if (found := told("quick_check(1)")) != "ok":
        return str(found)
    expected, there = told("page_count") * told("page_size"), path.stat().st_size
    if told("journal_mode") != "wal" and there < expected:  # SQLite would read missing bytes of the last page as zeros
        return f"{there} bytes of {expected}"
    return None


def _say_if_empty(path: Path, least: int) -> bool:
    size = path.stat().st_size
    if size < least:
        log.warning("%s: holds no study (%d bytes); a new search begins there", path, size)
    return size < least
