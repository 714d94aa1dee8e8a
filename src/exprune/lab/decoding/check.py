"""Check whether an experiment can be measured with the kernels of `exprune.fast`."""

import importlib.util

from omegaconf import DictConfig
from transformers import OPTForCausalLM

from exprune.core.errors import SettingError
from exprune.lab.examples.language.task import NextTokenTask
from exprune.lab.tasks.task import Task


def check_engine(cfg: DictConfig, task: Task) -> None:
    """Raise a SettingError if ``engine`` does not fit the experiment, before anything slow begins."""
    if cfg.engine.tokens is None:
        return
    if not isinstance(task, NextTokenTask) or not isinstance(task.network, OPTForCausalLM):
        raise SettingError(
            f"engine=fast: model={cfg.model.name} on data={cfg.data.name} is not an OPT that predicts the next token; "
            "use engine=simulated"
        )
    if importlib.util.find_spec("numba") is None:
        raise SettingError("engine=fast needs numba: pip install 'exprune[fast]'")
