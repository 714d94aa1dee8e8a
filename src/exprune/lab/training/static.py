"""Static magnitude pruning of a trained network, in rounds or gradually (docs/method.md, section 3)."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData
from exprune.lab.tasks.task import Task
from exprune.lab.training.checkpoints import checkpoint_name, load_weights, save_weights
from exprune.lab.training.fit import fit
from exprune.lab.training.masks import attach_masks, masked_layers, refresh_weights, sparsity, weights_left
from exprune.lab.training.schedule import phases

log = logging.getLogger(__name__)


def dense_config(cfg: DictConfig) -> DictConfig:
    """The configuration of the dense network that static pruning starts from."""
    dense = copy.deepcopy(cfg)
    with open_dict(dense):
        dense.static = {"name": "none"}
        dense.checkpoint = None
    return dense


def prune_and_train(task: Task, data: SplitData, cfg: DictConfig, logger: Logger | None) -> dict[str, str]:
    """Prune the trained network of ``task`` by the configured schedule; afterwards its layers have masks.

    The weights after each round stay in the cache. So an interrupted run continues after the last round, and runs with
    more rounds continue those with fewer.

    Returns:
        Metadata to save with the weights.
    """
    network = task.network
    attach_masks(network, cfg.static.dense_layers)
    rounds = Path(cfg.paths.cache_dir).expanduser() / "rounds" / _name_of_all_rounds(cfg)
    history: dict[str, str] = {}
    todo = phases(cfg.static, cfg.model.get("epochs"))
    files = {phase.name: rounds / f"{phase.name}.safetensors" for phase in todo if cfg.static.schedule == "rounds"}
    done = max((k for k, phase in enumerate(todo) if phase.name in files and files[phase.name].exists()), default=-1)
    if done >= 0:
        log.info("going on after %s", todo[done].name)
        history = load_weights(files[todo[done].name], network, cfg.model.name)
    for phase in todo[done + 1 :]:
        pruning = MagnitudePruning(network, phase.sparsity_at)
        history = fit(task, data, cfg, logger, f"{checkpoint_name(cfg)}-{phase.name}", phase.epochs, pruning)
        log.info("%s: sparsity %.4f, %s %s", phase.name, sparsity(network), task.monitor, history[task.monitor])
        if phase.name in files:
            save_weights(files[phase.name], network, cfg, "float32", history)
    for name, (left, total) in weights_left(network).items():
        log.info("%s: %d of %d weights left (%.2f %%)", name, left, total, 100 * left / total)
    return history


def _name_of_all_rounds(cfg: DictConfig) -> str:
    shared = copy.deepcopy(cfg)
    with open_dict(shared):
        shared.static.rounds = shared.static.sparsity = None
    return checkpoint_name(shared)


class MagnitudePruning(ModelPruning):
    """Lightning's global L1 pruning at the start of every epoch, to an absolute sparsity.

    The number of weights to remove is computed from the present masks, so that a resumed training ends with the same
    sparsity as an uninterrupted one.
    """

    def __init__(self, network: lightning.LightningModule, sparsity_at: Callable[[int], float]) -> None:
        self.network, self.sparsity_at = network, sparsity_at
        super().__init__(
            "l1_unstructured",
            parameters_to_prune=[(module, "weight") for module in masked_layers(network).values()],
            amount=self._weights_to_remove,
            use_global_unstructured=True,
            make_pruning_permanent=False,  # so that the masks are in the checkpoint
            use_lottery_ticket_hypothesis=False,
        )

    def _weights_to_remove(self, epoch: int) -> int:
        counts = weights_left(self.network).values()
        left, total = (sum(column) for column in zip(*counts, strict=True))
        return max(0, left - round(total * (1 - self.sparsity_at(epoch))))

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        refresh_weights(self.network)  # so that current magnitudes are used, not those of the last forward pass
        self._run_pruning(trainer.current_epoch)
        for name, (left, _) in weights_left(self.network).items():
            if left == 0:
                raise SettingError(
                    f"static pruning to sparsity {self.sparsity_at(trainer.current_epoch):.4f} leaves no weight in "
                    f"{name}; prune less, or add it to static.dense_layers"
                )

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Do nothing: pruning happens at the start of an epoch."""
