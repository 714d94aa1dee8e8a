"""Optuna's part of a search: the study, its storage, its sampler."""

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from exprune.core.errors import SettingError
from exprune.lab.selection.damaged import check_database, journal

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


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
    study, known, trials = _opened(name, lambda: _storage(cfg), cfg.search.storage)
    if known is None:
        study.set_user_attr("about", text)
    elif known != text:
        was = _parsed(known)
        other = [key for key in {**about, **was} if was.get(key) != about.get(key)]
        raise SettingError(
            f"search.study={name}: its trials are of another {other[0]} ({_short(was.get(other[0]))}, "
            f"not {_short(about.get(other[0]))}); name another study"
        )
    # Not the same suggestions again after a restart, nor those of another worker.
    study.sampler = _sampler(cfg.search.name, hash((cfg.seed, os.getpid(), trials)) % 2**32)
    return study


def _parsed(known: Any) -> dict[str, Any]:
    """What a study was made about; of one that some other program or version made, its attribute as it is."""
    try:
        return dict(json.loads(known))
    except (TypeError, ValueError):
        return {"about": known}


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended, complete or stopped early."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def front(study: optuna.Study, max_drop: float) -> list[FrozenTrial]:
    """The complete trials that no other beats in drop and saving, up to a drop; the least saving first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best, lowest = [], float("inf")
    for trial in sorted(complete, key=lambda t: (-t.values[1], t.values[0])):
        if trial.values[0] < lowest:
            lowest = trial.values[0]
            if lowest <= max_drop:
                best.append(trial)
    return best[::-1]


def spread(study: optuna.Study, max_drop: float, count: int) -> list[FrozenTrial]:
    """Of each of ``count`` equal ranges of saving, up to the most, the complete trial that drops least, up to a drop.

    Where trials saw a part of the inputs, luck decides which of them are on their front, and one lucky trial hides all
    that save less.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    within = [trial for trial in complete if trial.values[0] <= max_drop and trial.values[1] > 0]
    most = max((trial.values[1] for trial in within), default=0.0)
    best: dict[int, FrozenTrial] = {}
    for trial in sorted(within, key=lambda t: (t.values[0], -t.values[1])):
        best.setdefault(min(int(count * trial.values[1] / most), count - 1), trial)
    return [best[k] for k in sorted(best)]


def _opened(name: str, storage: Callable[[], BaseStorage], where: str | None) -> tuple[optuna.Study, Any, int]:
    """The study, what it says it is about, and how many trials it has; all of it is read now, or refused now."""
    for attempt in range(5):  # workers that start at once may both try to make the tables of a fresh file
        try:
            study = optuna.create_study(
                study_name=name, storage=storage(), directions=("minimize", "maximize"), load_if_exists=True
            )
            return study, study.user_attrs.get("about"), len(study.get_trials(deepcopy=False))
        except SettingError:
            raise
        except Exception as error:
            if attempt == 4 or (where is not None and "://" in where and not where.startswith("sqlite")):
                line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    raise SettingError(f"search.name={name}: tpe, nsga2 or none")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
