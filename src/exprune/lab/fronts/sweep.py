"""Gather the jobs of a sweep into one table, with its fronts, a plot and a W&B run.

python -m exprune.lab.fronts.sweep FOLDER   (a sweep does this at its end; use this if it was interrupted)
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from exprune.core.errors import SettingError
from exprune.files import write_whole
from exprune.lab.evaluation.result import read_result
from exprune.lab.failures import failed_jobs, one_line
from exprune.lab.fronts.chart import log_front
from exprune.lab.fronts.pareto import find_results, plot, tabulate
from exprune.lab.tracking import tracked_sweep

log = logging.getLogger(__name__)


def end_sweep(cfg: DictConfig) -> list[str]:
    """Gather the sweep of a composed configuration (with its ``hydra`` part), and log it to W&B. Never raises.

    Returns:
        One line for each failed job, and for everything that could not be gathered.
    """
    folder = Path(cfg.hydra.sweep.dir).absolute()
    failed: list[str] = []
    try:
        table, failed = gather_sweep(folder)
        if table is not None:
            about = {"overrides": list(cfg.hydra.overrides.task), "results": len(table), "failed": failed}
            with tracked_sweep(cfg, folder, about) as tracker:
                log_front(tracker, table, {"results": table})
    except Exception as error:  # Hydra would turn an exception from here into a warning
        log.debug("gathering %s", folder, exc_info=error)
        failed.append(f"{folder}: {one_line(error)}")
    return failed


def gather_sweep(folder: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Write ``pareto.csv`` and ``pareto.png`` with the results of a sweep, which may cover several networks and data
    sets.

    Results of failed jobs are left out, because they may come from an earlier sweep in the same folder.

    Returns:
        The table, and one line for each failed job. The table is None, and nothing is written, if there are no results.

    Raises:
        SettingError: If the folder is not writable.
    """
    jobs = failed_jobs(folder)
    failed = list(jobs.values())
    results: list[dict[str, Any]] = []
    for path in find_results(folder):
        if jobs.keys().isdisjoint(path.parents):
            try:
                results.append(read_result(path))
            except SettingError as error:
                failed.append(str(error))
    if not results:
        return None, failed
    table = tabulate(results)
    write_whole(folder / "pareto.csv", lambda partial: table.to_csv(partial, index=False))
    plot(table, folder / "pareto.png")
    log.info("table and fronts of %d results: %s", len(table), folder / "pareto.csv")
    return table, failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m exprune.lab.fronts.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the sweep (hydra.sweep.dir of evaluate.py -m)")
    folder = parser.parse_args(arguments).folder
    try:
        table, failed = gather_sweep(folder)
        if table is None and not failed:
            failed = [f"{folder}: no job of a sweep below it; name the folder of evaluate.py -m"]
        if table is not None:
            print(f"{len(table)} results: {folder / 'pareto.csv'}, {folder / 'pareto.png'}")
    except SettingError as error:
        failed = [str(error)]
    if failed:
        sys.exit("\n".join(f"error: {line}" for line in failed))


if __name__ == "__main__":
    main()
