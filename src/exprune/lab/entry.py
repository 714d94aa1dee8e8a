"""The command line around an experiment: errors become one line and exit code 1, and a sweep survives failed jobs."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig

from exprune.lab.failures import known, one_line, recorded
from exprune.lab.freed_memory import keep_freed_memory
from exprune.lab.paths import cache_named, resolve_paths
from exprune.lab.settings import check_settings

_sweeps: list[DictConfig] = []  # sweeps that have begun and not ended; at most one
_failed: list[str] = []  # one line for each failed job, and for errors at the sweep's end


def job(task: str, cfg: DictConfig) -> None:
    """Run one job. In a multirun, any error is recorded in the job's folder, and the sweep continues.

    Args:
        task: The full name of the function to call with the configuration. It is imported only after the settings were
            checked, because its imports (torch, Lightning, transformers) take seconds.
        cfg: The configuration.
    """
    keep_freed_memory()
    config = HydraConfig.get()
    if config.mode == RunMode.MULTIRUN:
        with recorded(Path(config.runtime.output_dir), config.job.num, " ".join(config.overrides.task)):
            _checked(task, cfg)
        return
    try:
        _checked(task, cfg)
    except Exception as error:
        message = known(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")  # here, because Hydra would print a line of its own


def _checked(task: str, cfg: DictConfig) -> None:
    resolve_paths(cfg)
    check_settings(cfg)
    if "exprune" in cfg:  # report what a heuristic refuses before the networks' libraries are imported
        get_method("exprune.lab.configured.heuristic_of")(cfg)
    run_task = get_method(task)
    hush_libraries()  # after the import, because Lightning then sets its log levels
    with cache_named(cfg):
        run_task(cfg)


def run(main: Callable[[], None]) -> None:
    """Call Hydra's entry point. Errors become one line each on stderr, with exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are handled here, not by Hydra's own printer
    _sweeps.clear()
    _failed.clear()
    try:
        main()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(130)  # Lightning turns Ctrl-C into sys.exit(1)
        if stop.code or not _sweeps:
            raise
        _end_sweeps()  # the exit code is 0, but the sweep has not ended: this is a failure
        _failed.append("the launcher stopped before the end of the sweep")
    except Exception as error:
        message = known(error)
        if message is None and not _sweeps:
            raise
        if isinstance(error, OSError) and message is not None:  # raised by Hydra; jobs report their own errors
            message += ", with hydra.sweep.dir" if _sweeps else ", with hydra.run.dir"
        # Jobs of a sweep handle their own errors. This one is the launcher's, after which Hydra does not end the sweep.
        _end_sweeps()
        _failed.append(message or f"the launcher stopped: {one_line(error)}")
    if _failed:
        sys.exit("\n".join(f"error: {line}" for line in _failed))


class SweepCallback(Callback):
    """Tell this module when a sweep begins and ends, in the process that launches its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _sweeps.append(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if all(path.name == "multirun.yaml" for path in folder.glob("*")):  # also if there is no folder
            _failed.append(f"{folder}: the launcher ran none of the jobs")
        _end_sweeps()


def _end_sweeps() -> None:
    while _sweeps:
        from exprune.lab.fronts.sweep import end_sweep  # imports pandas and matplotlib

        _failed.extend(end_sweep(_sweeps.pop()))


def hush_libraries() -> None:
    """Hide log messages and warnings of Lightning and other libraries about themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torch_geometric|torchmetrics)(\..*)?$")
