"""Train a task with Lightning. The best validation epoch is kept, and interrupted training is resumed."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig

from exprune.core.errors import SettingError
from exprune.files import kept
from exprune.lab.data.splits import SplitData, check_trainable
from exprune.lab.tasks.task import Task
from exprune.lab.training.precision import training_precision

log = logging.getLogger(__name__)


def make_trainer(cfg: DictConfig, **options: Any) -> lightning.Trainer:
    """A Lightning trainer on the configured device, with a progress bar if the output is a terminal.

    Raises:
        SettingError: If the accelerator is not available, or does not support the precision.
    """
    accelerator = cfg.trainer.accelerator
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise SettingError("trainer.accelerator=gpu: PyTorch sees no GPU here; use trainer=cpu or trainer=auto")
    options = {"precision": cfg.trainer.precision, **options}
    try:
        return lightning.Trainer(
            **options,
            accelerator=accelerator,
            plugins=_processes_of_its_own(),
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
        )
    except ValueError as error:
        if "precision" not in str(error).lower():
            raise
        raise SettingError(f"precision={options['precision']}: {' '.join(str(error).split())}") from error


def _processes_of_its_own() -> LightningEnvironment:
    """An environment with only Lightning's own processes. By default, SLURM tasks would be one distributed run."""
    environment = LightningEnvironment()
    environment.set_global_rank(environment.local_rank())  # Lightning has read SLURM's rank when it was imported
    return environment


def fit(
    task: Task,
    data: SplitData,
    cfg: DictConfig,
    logger: Logger | None,
    name: str,
    epochs: int,
    pruning: Callback | None = None,
) -> dict[str, str]:
    """Train ``task``, and leave it with the weights of its best validation epoch, or with ``pruning`` of its last.

    Everything needed to resume is in the cache under ``name`` until training ends.

    Returns:
        Metadata to save with the weights: that epoch and its validation metric.
    """
    check_trainable(task, data)
    folder = Path(cfg.paths.cache_dir).expanduser() / "training" / name
    best = ModelCheckpoint(folder, filename="best", monitor=task.monitor, mode="max", enable_version_counter=False)
    latest = ModelCheckpoint(folder, filename="last", enable_version_counter=False)  # of every epoch, to resume from
    wanted = cfg.model.get("precision") or cfg.trainer.precision
    precision = training_precision(wanted, make_trainer(cfg, precision=wanted).strategy.root_device)
    trainer = make_trainer(
        cfg,
        devices=cfg.trainer.devices,
        precision=precision,
        max_epochs=epochs,
        callbacks=[
            best if pruning is None else pruning,
            latest,  # after the best, so that its state is included
            *([] if sys.stderr.isatty() else [_EpochLog()]),
        ],
        logger=logger or False,
        num_sanity_val_steps=0,
    )
    last = folder / "last.ckpt"
    resumed = kept(last, lambda file: _resumable(file, task), "this training begins anew")
    if resumed:
        log.info("resuming the interrupted training in %s", folder)
    trainer.fit(task, datamodule=data, ckpt_path=str(last) if resumed else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    history = {"epoch": str(trainer.current_epoch - 1), task.monitor: f"{trainer.callback_metrics[task.monitor]:.6f}"}
    if pruning is None:
        state = torch.load(best.best_model_path, weights_only=True)
        task.load_state_dict(state["state_dict"])
        assert best.best_model_score is not None
        history = {"epoch": str(state["epoch"]), task.monitor: f"{best.best_model_score.item():.6f}"}
    shutil.rmtree(folder, ignore_errors=True)
    return history


def _resumable(file: Path, task: Task) -> bool:
    """Check that training can resume from a Lightning checkpoint and from the best epoch's checkpoint that it names."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    missing = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "callbacks"} - state.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    weights = [state]
    for callback in state["callbacks"].values():
        if (best := callback.get("best_model_path")) and Path(best) != file:
            weights.append(torch.load(best, map_location="cpu", weights_only=True))
    own = {name: tensor.shape for name, tensor in task.state_dict().items()}
    if any({name: tensor.shape for name, tensor in of["state_dict"].items()} != own for of in weights):
        raise ValueError("its weights are of another network")
    return True


class _EpochLog(Callback):
    """Log one line per epoch if there is no progress bar."""

    def on_validation_end(self, trainer: lightning.Trainer, task: Any) -> None:
        value = trainer.callback_metrics[task.monitor].item()
        log.info("epoch %d of %d: %s %.4f", trainer.current_epoch + 1, trainer.max_epochs, task.monitor, value)
