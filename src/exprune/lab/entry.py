"""What the command line does around an experiment: one line per error, exit code 1; a sweep goes on and is gathered."""

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

_sweeps: list[DictConfig] = []  # that began here and did not end yet: one at most
_failed: list[str] = []  # a line for each job that failed, and for what went wrong at the sweep's end


def job(task: str, cfg: DictConfig) -> None:
    """Run one job. In a multirun whatever goes wrong is recorded in the job's folder and the sweep goes on.

    Args:
        task: the full name of the function that is given the configuration. It is imported when the settings are
            checked: what it stands on (torch, Lightning, transformers) takes seconds.
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
        sys.exit(f"error: {message}")  # from here: Hydra would print a line of its own


def _checked(task: str, cfg: DictConfig) -> None:
    resolve_paths(cfg)
    check_settings(cfg)
    if "exprune" in cfg:  # what a heuristic refuses is told before the networks' libraries are imported
        get_method("exprune.lab.configured.heuristic_of")(cfg)
    run_task = get_method(task)
    hush_libraries()  # when they are imported: Lightning sets its levels then
    with cache_named(cfg):
        run_task(cfg)


def run(main: Callable[[], None]) -> None:
    """Call Hydra's entry point; errors become one line each on stderr and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    _sweeps.clear()
    _failed.clear()
    try:
        main()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(130)  # Lightning makes sys.exit(1) of Ctrl-C
        if stop.code or not _sweeps:
            raise
        _end_sweeps()  # code 0, but a sweep that has not ended is not well
        _failed.append("the launcher stopped before the sweep's end")
    except Exception as error:
        message = known(error)
        if message is None and not _sweeps:
            raise
        if isinstance(error, OSError) and message is not None:  # Hydra's: a job's own are told in the job
            message += ", with hydra.sweep.dir" if _sweeps else ", with hydra.run.dir"
        # What a job of a sweep raises stays in the job: this is the launcher's, and Hydra does not end the sweep then.
        _end_sweeps()
        _failed.append(message or f"the launcher stopped: {one_line(error)}")
    if _failed:
        sys.exit("\n".join(f"error: {line}" for line in _failed))


class SweepCallback(Callback):
    """Tells this module where a sweep begins and ends, in the process that launches its jobs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _sweeps.append(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if all(path.name == "multirun.yaml" for path in folder.glob("*")):  # or there is no folder
            _failed.append(f"{folder}: the launcher ran none of the jobs")
        _end_sweeps()


def _end_sweeps() -> None:
    while _sweeps:
        from exprune.lab.fronts.sweep import end_sweep  # with pandas and matplotlib

        _failed.extend(end_sweep(_sweeps.pop()))


def hush_libraries() -> None:
    """Keep what Lightning and others say of themselves from the user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torch_geometric|torchmetrics)(\..*)?$")
