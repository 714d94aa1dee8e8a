"""The subject of evaluations and searches: a trained network with its data and sites."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from exprune.core import ExPrune, Heuristic, Site, find_sites, select_sites
from exprune.core.calibration.files import network_digest
from exprune.lab.data.splits import SplitData, batches_of, check_measurable
from exprune.lab.decoding.check import check_engine
from exprune.lab.evaluation.head import check_head, without_head
from exprune.lab.fingerprint import code_digest, fingerprint
from exprune.lab.tasks.task import Task
from exprune.lab.training.checkpoints import load_weights, other_settings
from exprune.lab.training.fit import make_trainer
from exprune.lab.training.masks import attach_masks
from exprune.lab.training.trained import weights_for

log = logging.getLogger(__name__)

_DENSE = ("model", "data", "static", "trainer")  # settings that a dense pass depends on, besides weights and inputs


@dataclass(frozen=True)
class Inputs:
    """Batches to measure on, identified by their bytes."""

    batches: Any

    @cached_property
    def digest(self) -> str:
        return fingerprint(*self.batches)


@dataclass(frozen=True)
class Subject:
    """A trained network with its data. ``weights`` is the file of its weights; None for a pretrained model."""

    cfg: DictConfig
    trainer: lightning.Trainer
    task: Task
    data: SplitData
    sites: list[Site]
    weights: Path | None
    _inputs: dict[str, Inputs] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def checkpoint(self) -> str:
        """The name of the network's weights."""
        return self.cfg.model.pretrained if self.weights is None else self.weights.name

    def loader(self, split: str) -> Any:
        """The batches of ``test`` or ``valid``."""
        return batches_of(self.data, split)

    def inputs(self, split: str) -> Inputs:
        """The inputs of ``test`` or ``valid``."""
        if split not in self._inputs:
            self._inputs[split] = Inputs(self.loader(split))
        return self._inputs[split]

    def cached(self, name: str) -> Path:
        """The path of a file in the cache."""
        return Path(self.cfg.paths.cache_dir).expanduser() / name

    @cached_property
    def network_digest(self) -> str:
        """The fingerprint of the network's weights, whatever their file is called."""
        return network_digest(self.task.network)

    @cached_property
    def identity(self) -> str:
        """The fingerprint of all that determines a dense pass but the inputs: weights, code, settings, device."""
        settings = [plain(self.cfg[axis]) for axis in _DENSE]
        device = self.trainer.strategy.root_device.type
        return fingerprint(device, self.network_digest, code_digest(self.task), settings)


def prepare(cfg: DictConfig, heuristic: Heuristic | None, measured: Sequence[str] = ()) -> Subject:
    """Load data and network, find the sites, and load the trained weights; without weights, train now.

    Wrong settings are reported before anything is trained.

    Args:
        cfg: The configuration.
        heuristic: The heuristic.
        measured: Splits that will be measured in addition to ``cfg.split``.
    """
    trainer = make_trainer(cfg, devices=1, logger=False)
    data = load_data(cfg)
    loaders = {split: batches_of(data, split) for split in (cfg.split, *measured)}
    task = instantiate(cfg.data.get("task") or cfg.model.task, network=instantiate(cfg.model.network))
    check_head(cfg, task)
    check_engine(cfg, task)
    for split, loader in loaders.items():
        check_measurable(task, loader, f"split={split}")
    sites = find_sites(task.network, *task.network_inputs(next(iter(loaders[cfg.split]))))
    if heuristic is not None:
        sites = select_sites(without_head(cfg, task, sites), cfg.exprune.sites, cfg.exprune.scope)
    ExPrune(sites, heuristic, gain_ratio=plain(cfg.exprune.gain_ratio))  # raises if they do not fit together

    weights = weights_for(cfg, data)
    log.info("weights: %s", weights or cfg.model.pretrained)
    if cfg.static.name != "none":
        attach_masks(task.network, cfg.static.dense_layers)
    if weights is not None:
        load_weights(weights, task.network, cfg.model.name)
        if others := other_settings(weights, cfg):
            log.warning("%s: trained as another network: %s", weights, ", ".join(others))
    return Subject(cfg, trainer, task, data, sites, weights)


def load_data(cfg: DictConfig) -> SplitData:
    """The configured data, read and split."""
    data = instantiate(cfg.data.module)
    data.setup()
    return data


def plain(setting: Any) -> Any:
    """A setting as Python's own numbers, lists and dictionaries."""
    return OmegaConf.to_container(setting, resolve=True) if OmegaConf.is_config(setting) else setting
