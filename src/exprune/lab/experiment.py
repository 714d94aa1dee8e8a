"""Where the parts of an experiment meet: :func:`train` and :func:`evaluate`."""

import logging
from pathlib import Path

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig

from exprune.lab.checkpoints import cached_path, save_weights
from exprune.lab.tracking import lightning_logger
from exprune.lab.training import fit

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> Path:
    """Train the configured network and write its weights; returns where they lie."""
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data.module)
    data.setup()
    task = instantiate(cfg.model.task, network=instantiate(cfg.model.network))
    log.info("training %s on %s, %d epochs", cfg.model.name, cfg.data.name, cfg.model.epochs)
    history = fit(task, data, cfg, lightning_logger(cfg))
    path = Path(cfg.checkpoint).expanduser() if cfg.checkpoint is not None else cached_path(cfg)
    save_weights(path, task.network, cfg, cfg.checkpoint_dtype, history)
    log.info("weights of epoch %s (%s %s): %s", history["epoch"], task.monitor, history[task.monitor], path)
    return path


def evaluate(cfg: DictConfig) -> None: ...
