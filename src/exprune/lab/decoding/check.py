"""Whether an experiment can be measured through the kernels of :mod:`exprune.fast`."""

import importlib.util

from omegaconf import DictConfig
from transformers import OPTForCausalLM

from exprune.core.errors import SettingError
from exprune.lab.examples.language.task import NextTokenTask
from exprune.lab.tasks.task import Task


def check_engine(cfg: DictConfig, task: Task) -> None:
    """Raises SettingError where ``engine`` asks for what cannot be, before anything long begins."""
    if cfg.engine.tokens is None:
        return
    if not isinstance(task, NextTokenTask) or not isinstance(task.network, OPTForCausalLM):
        raise SettingError(
            f"engine=fast: model={cfg.model.name} on data={cfg.data.name} predicts no next token as an OPT does; "
            "engine=simulated"
        )
    if importlib.util.find_spec("numba") is None:
        raise SettingError("engine=fast needs numba: pip install 'exprune[fast]'")
