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
    config = HydraConfig.get()
    try:
        task(cfg)
    except Exception as error:
        message = _known(error)
        if message is None:
            raise
        if config.mode == RunMode.RUN:
            sys.exit(f"error: {message}")  # from here: Hydra would print a line of its own
        record = Path(config.runtime.output_dir) / "error.json"
        record.write_text(json.dumps({"error": message}))
        _failed.append(f"{' '.join(config.overrides.task)}: {message}")


def run(main: Callable[[], None]) -> None:
    """Call Hydra's entry point; known errors become one line on stderr and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = _known(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
    if _failed:
        sys.exit("\n".join(f"error: {line}" for line in _failed))


def _known(error: BaseException | None) -> str | None:
    """The one line of an error that a setting or a file causes, also where Hydra wraps it; None for a bug."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    # The innermost says what is wrong; Hydra's wrappers say where in its code.
    for kind in (SettingError, (HydraException, OmegaConfBaseException)):
        for link in chain:
            if isinstance(link, kind) and str(link):
                return " ".join(str(link).split())
    if isinstance(chain[0], PermissionError | NotADirectoryError | FileExistsError):
        return f"{chain[0].filename}: {chain[0].strerror}; name a folder that can be written to"
    return None


def _hush_libraries() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torch_geometric|torchmetrics)(\..*)?$")
