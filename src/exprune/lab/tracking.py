"""Weights & Biases, offline unless asked otherwise."""

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig


def lightning_logger(cfg: DictConfig) -> Logger | None:
    return None
