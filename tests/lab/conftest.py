"""Creates a trainer as the commands do."""

from collections.abc import Callable
from functools import partial

import lightning
import pytest
from omegaconf import OmegaConf

from exprune.lab.training.fit import make_trainer


@pytest.fixture
def cpu_trainer() -> Callable[..., lightning.Trainer]:
    """Creates a trainer on the CPU with options of Lightning; Lightning's own would look for a cluster."""
    settings = OmegaConf.create({"trainer": {"accelerator": "cpu", "precision": "32-true"}})
    return partial(make_trainer, settings, logger=False)
