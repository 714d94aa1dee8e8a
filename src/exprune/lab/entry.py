"""What the command line does around an experiment: one line per wrong setting, exit code 1."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from exprune.core.errors import SettingError

_failed: list[str] = []


def job(task: Callable[[DictConfig], object], cfg: DictConfig) -> None:
    """Run one job. In a multirun a wrong setting is recorded in the job's folder and the sweep goes on."""
    _hush_libraries()
    if HydraConfig.get().mode == RunMode.RUN:
        task(cfg)
        return
    try:
        task(cfg)
    except SettingError as error:
        record = Path(HydraConfig.get().runtime.output_dir) / "error.json"
        record.write_text(json.dumps({"error": str(error)}))
        _failed.append(f"{' '.join(HydraConfig.get().overrides.task)}: {error}")


def run(main: Callable[[], None]) -> None:
    """Call Hydra's entry point; known errors become one line on stderr and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    try:
        main()
    except (SettingError, HydraException, OmegaConfBaseException, PermissionError) as error:
        while not str(error) and error.__cause__ is not None:  # Hydra's wrappers can be empty
            error = error.__cause__
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
    if _failed:
        sys.exit("\n".join(f"error: {line}" for line in _failed))


def _hush_libraries() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torch_geometric|torchmetrics)(\..*)?$")
