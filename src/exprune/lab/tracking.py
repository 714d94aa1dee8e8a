"""Weights & Biases tracking, offline by default. Every run is finished before its job ends."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from exprune.errors import SettingError
from exprune.lab.failures import one_line

if TYPE_CHECKING:  # W&B and Lightning are imported only when a run is tracked; checking settings needs neither
    from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)

_MODES = ("offline", "online", "disabled")


def check_logger(cfg: DictConfig) -> None:
    """Raise a SettingError if the mode is unknown, before anything slow begins."""
    if cfg.logger.name != "none":
        _mode(cfg.logger)


def _mode(logger: DictConfig) -> str:
    """``logger.mode``, or else W&B's own variable, or else offline."""
    named = "WANDB_MODE" if logger.mode is None else "logger.mode"
    mode = os.environ.get("WANDB_MODE") or "offline" if logger.mode is None else logger.mode
    if mode not in _MODES:
        raise SettingError(f"{named}={mode}: must be offline, online, or disabled (which is logger=none)")
    return mode


def tracked(cfg: DictConfig, job_type: str) -> AbstractContextManager[Any | None]:
    """A W&B run for this job, or None with ``logger=none``. The jobs of a sweep form a group.

    Raises:
        SettingError: If the mode is online, but there is no account or no network.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return _run(cfg.logger, Path(cfg.paths.output_dir), sweep_name(), job_type, config)


def tracked_sweep(cfg: DictConfig, folder: Path, config: dict[str, Any]) -> AbstractContextManager[Any | None]:
    """A W&B run that summarises the sweep in ``folder``, in the group of its jobs; None with ``logger=none``."""
    return _run(cfg.logger, folder, folder.name, "sweep", config)


def sweep_name() -> str | None:
    """The name of the sweep's folder if this job belongs to a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).absolute().name


@contextlib.contextmanager
def _run(
    logger: DictConfig, folder: Path, sweep: str | None, job_type: str, config: dict[str, Any]
) -> Iterator[Any | None]:
    if logger.name == "none" or (mode := _mode(logger)) == "disabled":
        yield None
        return
    if mode == "offline":
        # wandb's threads would report to its servers all the same, and log each failure with its traceback.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        run: Any = wandb.init(
            project=logger.project,
            group=logger.group or sweep,
            job_type=job_type,
            mode=cast(Any, mode),
            dir=folder,
            config=config,
            settings=wandb.Settings(silent=True),
            reinit="create_new",  # otherwise an unfinished run of this process would be returned again
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise SettingError(f"logger.mode={mode}: {error}; use logger.mode=offline") from error
    except Exception as error:  # folders are not writable, there is no home, or W&B's service does not start
        log.warning("W&B cannot track this run, which goes on without it: %s", one_line(error))
        run = None
    if run is None:
        yield None
        return
    run.log = _forgiving(run.log)
    try:
        yield run
    except BaseException:
        _finish(run, 1)
        raise
    _finish(run, 0)


def _forgiving(call: Callable[..., None]) -> Callable[..., None]:
    """Wrap a call so that it cannot fail the job: a cluster may end W&B's service before the job."""
    alive = True

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal alive
        if not alive:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:
            alive = False
            log.warning("W&B takes no more of this run, which goes on without it: %s", one_line(error))

    return attempt


def _finish(run: Any, exit_code: int) -> None:
    """Finish the run. Exceptions of W&B are logged, so that they do not replace the one that ends the job."""
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:
        log.warning("W&B could not finish the run in %s: %s", Path(run.dir).parent, one_line(error))
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()  # the service is gone; the next run starts a new one


@contextlib.contextmanager
def only_tracks() -> Iterator[None]:
    """Log errors instead of raising them, because tracking must not fail a job (for example, read-only W&B folders)."""
    try:
        yield
    except Exception as error:
        log.warning("W&B did not take all of the results, which are written to disk: %s", one_line(error))


def lightning_logger(run: Any | None) -> "Logger | None":
    """Lightning's logger for the run; None without a run."""
    from lightning.pytorch.loggers import WandbLogger

    return None if run is None else WandbLogger(experiment=run)
