"""Weights & Biases, offline unless asked otherwise. Every run is finished before its job ends."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from exprune.core.errors import SettingError
from exprune.lab.chart import front_charts
from exprune.lab.result import Result

_MODES = ("offline", "online", "disabled")


def check_logger(cfg: DictConfig) -> None:
    """Raises SettingError where the mode is unknown, before anything long begins."""
    if cfg.logger.name != "none":
        _mode(cfg.logger)


def _mode(logger: DictConfig) -> str:
    """``logger.mode``, else what W&B's own variable says, else offline."""
    named = "WANDB_MODE" if logger.mode is None else "logger.mode"
    mode = os.environ.get("WANDB_MODE") or "offline" if logger.mode is None else logger.mode
    if mode not in _MODES:
        raise SettingError(f"{named}={mode}: offline or online, or disabled (as logger=none)")
    return mode


def tracked(cfg: DictConfig, job_type: str) -> AbstractContextManager[Any | None]:
    """A W&B run for this job, or None with ``logger=none``; the jobs of a sweep are one group.

    Raises:
        SettingError: online without an account or a network.
    """
    config = OmegaConf.to_container(cfg, resolve=True)
    return _run(cfg.logger, Path(cfg.paths.output_dir), _sweep(), job_type, config)


def tracked_sweep(cfg: DictConfig, folder: Path, config: dict[str, Any]) -> AbstractContextManager[Any | None]:
    """A W&B run that sums up the sweep in ``folder``, in the group of its jobs; None with ``logger=none``."""
    return _run(cfg.logger, folder, folder.name, "sweep", config)


def _sweep() -> str | None:
    """The name of the folder of the sweep that this job belongs to."""
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
    try:
        run = wandb.init(
            project=logger.project,
            group=logger.group or sweep,
            job_type=job_type,
            mode=mode,
            dir=folder,
            config=config,
            settings=wandb.Settings(silent=True),
            reinit="create_new",  # else a run of this process that is not finished would be returned again
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise SettingError(f"logger.mode={mode}: {error}; use logger.mode=offline") from error
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
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


def log_front(run: Any | None, results: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> None:
    """Results (:func:`exprune.lab.pareto.tabulate`) as interactive charts, the table of their front, and more tables.

    The charts are Plotly's: they lie in the run's files as a whole, so ``wandb sync`` uploads them with an offline run.
    """
    if run is None:
        return
    charts = {f"front/{name}": wandb.Plotly(figure) for name, figure in front_charts(results).items()}
    tables = {"front/table": results[results["front"]], **tables}
    run.log(charts | {name: _table(table) for name, table in tables.items()})


def _table(table: pd.DataFrame) -> wandb.Table:
    """W&B knows numbers, strings and truth values alone; times become strings."""
    plain = table.apply(lambda column: column if column.dtype.kind in "biuf" else column.astype(str))
    return wandb.Table(dataframe=plain)
