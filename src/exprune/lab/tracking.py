"""Weights & Biases, offline unless asked otherwise. Every run is finished before its job ends."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from exprune.core.errors import SettingError
from exprune.lab.result import Result


def check_logger(cfg: DictConfig) -> None:
    """Raises SettingError where the mode is unknown, before anything long begins."""
    if cfg.logger.name != "none" and cfg.logger.mode not in ("offline", "online"):
        raise SettingError(f"logger.mode={cfg.logger.mode}: offline or online (or logger=none)")


@contextlib.contextmanager
def tracked(cfg: DictConfig, job_type: str) -> Iterator[Any | None]:
    """A W&B run for this job, or None with ``logger=none``.

    Raises:
        SettingError: online without an account or a network.
    """
    if cfg.logger.name == "none":
        yield None
        return
    try:
        run = wandb.init(
            project=cfg.logger.project,
            group=cfg.logger.group,
            job_type=job_type,
            mode=cfg.logger.mode,
            dir=cfg.paths.output_dir,
            config=OmegaConf.to_container(cfg, resolve=True),
            settings=wandb.Settings(silent=True),
            reinit="create_new",
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise SettingError(f"logger.mode={cfg.logger.mode}: {error}; use logger.mode=offline") from error
    try:
        yield run
    finally:
        run.finish()


def lightning_logger(run: Any | None) -> Logger | None:
    """Lightning's logger onto the run."""
    return None if run is None else WandbLogger(experiment=run)


def log_result(run: Any | None, result: Result, folder: Path) -> None:
    """Metric and FLOPs as scalars, the sites as a table, result.json as a file."""
    if run is None:
        return
    values = asdict(result)
    run.log(
        {
            **{f"metric/{key}": value for key, value in values["metric"].items() if isinstance(value, float)},
            **{f"flops/{key}": value for key, value in values["flops"].items() if isinstance(value, float)},
        }
    )
    columns = ["name", "kind", "eligible", "reason", "terms", "tau", "outputs", "pruned", "negative", "wrong"]
    rows = [[row[column] for column in columns] for row in result.sites]
    run.log({"sites": wandb.Table(columns=columns, data=rows)})
    shutil.copy(folder / "result.json", run.dir)  # what lies there is uploaded with the run
