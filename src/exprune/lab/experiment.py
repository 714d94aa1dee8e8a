"""Where the parts of an experiment meet: :func:`train` and :func:`evaluate`."""

import hashlib
import json
import logging
import platform
import shlex
from importlib.metadata import version
from pathlib import Path

import lightning
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from exprune.core import ExPrune, find_sites, select_sites
from exprune.core.errors import SettingError
from exprune.lab.checkpoints import cached_path, checkpoint_name, find_checkpoint, load_weights, save_weights
from exprune.lab.files import write_whole
from exprune.lab.intervals import paired_bootstrap
from exprune.lab.masks import attach_masks, sparsity
from exprune.lab.passes import Pass, run_pass
from exprune.lab.report import print_result
from exprune.lab.result import Metric, Result, flops_per_input, site_rows
from exprune.lab.static import check_static, dense_config, prune_and_train
from exprune.lab.tracking import check_logger, lightning_logger, log_result, tracked
from exprune.lab.training import fit, make_trainer

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> Path:
    """Train the configured network and write its weights; returns where they lie."""
    check_logger(cfg)
    check_static(cfg)
    if cfg.model.get("pretrained") and cfg.static.name == "none":
        raise SettingError(f"model.pretrained={cfg.model.pretrained}: is trained already; evaluate it")
    make_trainer(cfg)  # a device that is not there is said before the data is read
    return _train(cfg, _data(cfg))


def _data(cfg: DictConfig) -> lightning.LightningDataModule:
    data = instantiate(cfg.data.module)
    data.setup()
    return data


def _train(cfg: DictConfig, data: lightning.LightningDataModule) -> Path:
    pruning = cfg.static.name != "none"
    dense = _weights(dense_config(cfg), data) if pruning else None
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    task = instantiate(cfg.model.task, network=instantiate(cfg.model.network))
    with tracked(cfg, "train") as tracker:
        logger = lightning_logger(tracker)
        if not pruning:
            log.info("training %s on %s, %d epochs", cfg.model.name, cfg.data.name, cfg.model.epochs)
            history = fit(task, data, cfg, logger, checkpoint_name(cfg), cfg.model.epochs)
        else:
            log.info("pruning %s on %s (static=%s), from %s", cfg.model.name, cfg.data.name, cfg.static.name, dense)
            if dense is not None:
                load_weights(dense, task.network, cfg.model.name)
            history = prune_and_train(task, data, cfg, logger)
    path = Path(cfg.checkpoint).expanduser() if cfg.checkpoint is not None else cached_path(cfg)
    save_weights(path, task.network, cfg, cfg.checkpoint_dtype, history)
    log.info("weights of epoch %s (%s %s): %s", history["epoch"], task.monitor, history[task.monitor], path)
    return path


def _weights(cfg: DictConfig, data: lightning.LightningDataModule) -> Path | None:
    """The trained weights of this configuration; trains them where there are none. None: the network has its own."""
    path = find_checkpoint(cfg)
    if path is None and cfg.model.get("pretrained") and cfg.static.name == "none":
        return None
    if path is None:
        log.info("no trained weights for this configuration of %s on %s yet", cfg.model.name, cfg.data.name)
        path = _train(cfg, data)
    return path


def evaluate(cfg: DictConfig) -> Result:
    """Evaluate the configured network densely and under ExPrune; writes and prints the result.

    Whatever is wrong with the settings is said before anything is trained.
    """
    check_logger(cfg)
    check_static(cfg)
    trainer = make_trainer(cfg, devices=1, logger=False)
    heuristic = instantiate(cfg.exprune.heuristic, _convert_="all")
    data = _data(cfg)
    loader = _loader(data, cfg.split)
    task = instantiate(cfg.data.get("task") or cfg.model.task, network=instantiate(cfg.model.network))
    inputs = task.network_inputs(next(iter(loader)))
    sites = find_sites(task.network, *inputs)
    selection = OmegaConf.to_container(cfg.exprune)["sites"]
    if heuristic is not None:
        sites = select_sites(sites, selection)
    gain_ratio = OmegaConf.to_container(cfg.exprune)["gain_ratio"]
    ExPrune(sites, heuristic, gain_ratio=gain_ratio)  # what does not fit is said now

    path = _weights(cfg, data)
    log.info("weights: %s", path or cfg.model.pretrained)
    if cfg.static.name != "none":
        attach_masks(task.network, cfg.static.dense_layers)
    if path is not None:
        load_weights(path, task.network, cfg.model.name)
    run = ExPrune(sites, heuristic, gain_ratio=gain_ratio)  # anew: the plan follows the masks

    folder = Path(cfg.paths.output_dir)
    with tracked(cfg, "evaluate") as tracker:
        dense = None if heuristic is None else _dense_pass(trainer, task, loader, cfg, path)
        file = _pass_file(cfg, path, (*_DENSE, "exprune"))
        pruned = run_pass(trainer, task, loader, run, file)
        dense = dense or pruned
        result = Result(
            model=cfg.model.name,
            data=cfg.data.name,
            split=cfg.split,
            inputs=len(dense.targets),
            static=cfg.static.name,
            sparsity=sparsity(task.network),
            seed=cfg.seed,
            checkpoint=cfg.model.pretrained if path is None else path.name,
            heuristic="none" if heuristic is None else type(heuristic).__name__,
            tau=None if heuristic is None else heuristic.tau,
            n=cfg.exprune.n,
            gain_ratio=gain_ratio,
            site_selection=selection,
            metric=_compare(task, dense, pruned, cfg.bootstrap, cfg.seed),
            flops=flops_per_input(task.unit, run.flops, dense, pruned),
            sites=site_rows(run),
            seconds={"dense": dense.seconds, "pruned": None if heuristic is None else pruned.seconds},
            versions=_versions(),
            command=shlex.join(["python", "evaluate.py", *cfg.overrides]),
            metrics=_secondary(task, dense, pruned),
        )
        examples = pd.DataFrame({"target": dense.targets, "dense": dense.predictions, "pruned": pruned.predictions})
        if "group" in dense.columns:
            examples["group"] = dense.columns["group"]
        write_whole(folder / "examples.parquet", examples.to_parquet)
        result.write(folder / "result.json")
        log_result(tracker, result, folder)
        for kept in (file, _pass_file(cfg, path, _DENSE)):
            kept.unlink(missing_ok=True)
    print_result(result)
    log.info("results: %s", folder)
    return result


_last_dense: dict[Path, Pass] = {}  # of the last evaluation: the jobs of a sweep over tau share it


def _dense_pass(
    trainer: lightning.Trainer, task: lightning.LightningModule, loader: object, cfg: DictConfig, path: Path | None
) -> Pass:
    file = _pass_file(cfg, path, _DENSE)
    if file not in _last_dense:
        _last_dense.clear()
        _last_dense[file] = run_pass(trainer, task, loader, None, file)
    return _last_dense[file]


_DENSE = ("model", "data", "static", "trainer", "split")  # what a dense pass depends on


def _pass_file(cfg: DictConfig, path: Path | None, axes: tuple[str, ...]) -> Path:
    """Where an interrupted pass with these settings and weights is kept."""
    about = OmegaConf.to_container(cfg, resolve=True)
    weights = None if path is None else (str(path), path.stat().st_mtime_ns)
    digest = hashlib.sha256(json.dumps([weights, *(about[axis] for axis in axes)]).encode()).hexdigest()[:16]
    return Path(cfg.paths.cache_dir).expanduser() / "passes" / f"{digest}.pt"


def _loader(data: lightning.LightningDataModule, split: str) -> object:
    loaders = {"test": data.test_dataloader, "valid": data.val_dataloader}
    if split not in loaders:
        raise SettingError(f"split={split}: test or valid")
    return loaders[split]()


def _compare(task: lightning.LightningModule, dense: Pass, pruned: Pass, resamples: int, seed: int) -> Metric:
    of_dense, of_pruned = (task.score(one.predictions, one.targets) for one in (dense, pruned))
    intervals = paired_bootstrap(
        task.weighted_metric,
        dense.predictions,
        pruned.predictions,
        dense.targets,
        resamples,
        seed,
        dense.columns.get("group"),
    )
    low, high = intervals.drop
    return Metric(
        name=task.metric_name,
        dense=of_dense,
        pruned=of_pruned,
        drop=100 * (of_dense - of_pruned),
        interval=(100 * low, 100 * high),
        dense_interval=intervals.dense,
        pruned_interval=intervals.pruned,
    )


def _secondary(task: lightning.LightningModule, dense: Pass, pruned: Pass) -> dict[str, dict[str, float]]:
    if not hasattr(task, "secondary"):
        return {}
    of_dense, of_pruned = task.secondary(dense.columns), task.secondary(pruned.columns)
    return {name: {"dense": of_dense[name], "pruned": of_pruned[name]} for name in of_dense}


def _versions() -> dict[str, str]:
    packages = ("exprune", "torch", "lightning", "torchmetrics", "transformers", "torch_geometric", "rdkit")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
