"""Trained weights for a configuration: found, or else trained once by the first of several jobs."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import lightning
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from omegaconf import DictConfig

from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData
from exprune.lab.tracking import lightning_logger, tracked
from exprune.lab.training.checkpoints import cached_path, checkpoint_name, find_checkpoint, load_weights, save_weights
from exprune.lab.training.fit import fit
from exprune.lab.training.static import dense_config, prune_and_train

log = logging.getLogger(__name__)


def weights_for(cfg: DictConfig, data: SplitData) -> Path | None:
    """The trained weights of this configuration; trains them if there are none. None for a pretrained model."""
    path = find_checkpoint(cfg)
    if path is None and cfg.model.get("pretrained") and cfg.static.name == "none":
        return None
    if path is None:
        with _alone(cfg):
            path = find_checkpoint(cfg)  # another job may have trained it meanwhile
            if path is None:
                log.info("no trained weights for this configuration of %s on %s yet", cfg.model.name, cfg.data.name)
                _say_of_limit(cfg)
                path = _train(cfg, data)
    return path


def _say_of_limit(cfg: DictConfig) -> None:
    """Log that ``data.limit`` limits training too, and name the checkpoint without a limit if there is one."""
    if cfg.data.limit is None:
        return
    whole = copy.deepcopy(cfg)
    whole.data.limit = None
    path = find_checkpoint(whole)
    if path is not None:
        log.info("data.limit=%d is of its training, too; with checkpoint=%s it is not", cfg.data.limit, path)


def train_weights(cfg: DictConfig, data: SplitData) -> Path:
    """Train the configured network, prune it statically if configured, and save its weights.

    Only one job at a time can do this, because jobs with the same configuration resume from and write the same files.
    """
    with _alone(cfg):
        return _train(cfg, data)


@contextlib.contextmanager
def _alone(cfg: DictConfig) -> Iterator[None]:
    """Wait until no other process trains this configuration. The lock of a killed process is released by the system."""
    lock = FileLock(cached_path(cfg).with_suffix(".lock"))
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("another job trains %s on %s: waiting for %s", cfg.model.name, cfg.data.name, lock.lock_file)
            lock.acquire(poll_interval=1.0)
    except OSError as error:
        raise SettingError(f"{lock.lock_file}: cannot be locked ({error}); choose another paths.cache_dir") from error
    try:
        yield
    finally:
        lock.release()


def _train(cfg: DictConfig, data: SplitData) -> Path:
    pruning = cfg.static.name != "none"
    dense = weights_for(dense_config(cfg), data) if pruning else None
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    task = instantiate(cfg.model.task, network=instantiate(cfg.model.network))
    with tracked(cfg, "train") as tracker:
        logger = lightning_logger(tracker)
        if not pruning:
            log.info("training %s on %s, %d epochs", cfg.model.name, cfg.data.name, cfg.model.epochs)
            history = fit(task, data, cfg, logger, checkpoint_name(cfg), cfg.model.epochs)
        else:
            log.info("pruning %s on %s (static=%s), from %s", cfg.model.name, cfg.data.name, cfg.static.name, dense)
            if dense is not None:
                load_weights(dense, task.network, cfg.model.name)
            history = prune_and_train(task, data, cfg, logger)
    path = Path(cfg.checkpoint).expanduser() if cfg.checkpoint is not None else cached_path(cfg)
    path = save_weights(path, task.network, cfg, cfg.checkpoint_dtype, history)
    log.info("weights of epoch %s (%s %s): %s", history["epoch"], task.monitor, history[task.monitor], path)
    return path
