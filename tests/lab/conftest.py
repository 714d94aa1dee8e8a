"""A trainer as the commands make it."""

from collections.abc import Callable
from functools import partial

import lightning
import pytest
from omegaconf import OmegaConf

from exprune.lab.training.fit import make_trainer


@pytest.fixture
def cpu_trainer() -> Callable[..., lightning.Trainer]:
    """Makes a trainer on the CPU, of Lightning's options; Lightning's own would look for a cluster around the tests."""
    settings = OmegaConf.create({"trainer": {"accelerator": "cpu", "precision": "32-true"}})
    return partial(make_trainer, settings, logger=False)
