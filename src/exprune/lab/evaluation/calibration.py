"""Statistics for the calibrated tests, measured on the training split and cached (docs/method.md, section 8)."""

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from tqdm import tqdm

from exprune.core import SiteStatistics
from exprune.core.calibration.files import MEASURED, load_statistics, save_statistics
from exprune.core.calibration.measure import measure_statistics
from exprune.core.errors import SettingError
from exprune.core.settings import whole
from exprune.files import kept, named
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.fingerprint import fingerprint
from exprune.lab.tasks.task import Task

log = logging.getLogger(__name__)

_VERSION = 3  # of the measurement; 3: language models use random signs, and calibration inputs are drawn last


def statistics_of(subject: Subject) -> dict[str, SiteStatistics]:
    """The statistics for the configured stages, order and inputs: from a file or the cache, or else measured now.

    Raises:
        SettingError: If ``exprune.calibration`` names a damaged file or one of another checkpoint, site list or
            setting; if there are too few inputs; or if the data has no training split.
    """
    cfg, about = subject.cfg, _about(subject)
    if cfg.exprune.calibration is not None:
        return named(Path(cfg.exprune.calibration).expanduser(), lambda path: _read(path, about))
    decides = [about, _inputs(subject), plain(cfg.model), cfg.trainer.precision]
    name = Path(subject.checkpoint).name.removesuffix(".safetensors")
    path = subject.cached(f"calibrations/{name}-{fingerprint(*decides)[:12]}.safetensors")
    statistics = kept(path, lambda path: _read(path, about), "it is measured anew")
    if statistics is None:
        save_statistics(path, calibrate(subject), about)
        log.info("calibration: %s", path)
        statistics = _read(path, about)
    return statistics


def _inputs(subject: Subject) -> str:
    """The fingerprint of the training inputs that are drawn for calibration, whatever the data is called."""
    inputs, generator = _number_of_inputs(subject), torch.Generator().manual_seed(subject.cfg.seed)
    parts = [subject.data.calibration_dataloader(count, generator) for count in (_of_gradients(inputs), inputs)]
    return fingerprint(*(fingerprint(*part) for part in parts))


def _number_of_inputs(subject: Subject) -> int:
    wanted = "a whole number of inputs, at least 1"
    return whole(subject.cfg.exprune.inputs, "exprune.inputs", wanted, lambda inputs: inputs >= 1)


def calibrate(subject: Subject) -> dict[str, SiteStatistics]:
    """Measure the statistics on training inputs; see `measure_statistics`. A quarter of them is used for the gradients.

    Raises:
        SettingError: If there are too few inputs, or if they do not reach all sites (for example an unused expert).
    """
    settings, task, sites = subject.cfg.exprune, subject.task, subject.sites
    _number_of_inputs(subject)
    generator = torch.Generator().manual_seed(subject.cfg.seed)
    some = subject.data.calibration_dataloader(_of_gradients(settings.inputs), generator)

    def forward(batch: Any) -> Any:
        return task.network(*task.network_inputs(batch))

    def all_batches() -> Iterable:  # drawn after the labels of the gradients
        return subject.data.calibration_dataloader(settings.inputs, generator)

    losses = _steps(lambda: some, subject.trainer, task, lambda batch: task.sampled_loss(batch, generator))
    calls = _steps(all_batches, subject.trainer, task, forward)
    statistics, refused = measure_statistics(task.network, sites, losses, calls, settings.order, settings.stages)
    for name, reason in refused.items():
        raise SettingError(
            f"exprune.inputs={settings.inputs}: {name}: {reason}; take more inputs (a quarter of them is for the "
            "gradients), or leave the layer out of exprune.sites"
        )
    return statistics


def _of_gradients(inputs: int) -> int:
    return math.ceil(inputs / 4)


def _steps(
    batches: Callable[[], Iterable], trainer: lightning.Trainer, task: Task, run: Callable[[Any], Any]
) -> Iterator[tuple[Tensor | None, Callable[[], Any]]]:
    """Yield for each batch its mask of data rows, and a function that runs it in the trainer's precision."""
    device = trainer.strategy.root_device
    task.to(device).eval()

    def in_type(batch: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            return run(batch)

    for batch in tqdm(batches(), desc="calibration", disable=None, leave=False):
        batch = task.transfer_batch_to_device(batch, device, 0)
        yield task.data_rows(batch) if hasattr(task, "data_rows") else None, functools.partial(in_type, batch)


def _about(subject: Subject) -> dict[str, Any]:
    """What the statistics belong to; a file with other values is refused."""
    settings, data = subject.cfg.exprune, subject.cfg.data
    return {
        "version": _VERSION,
        "weights": subject.network_digest,
        "data": data.get("trained_as", data).name,
        "sites": [site.name for site in subject.sites if site.eligible],
        "stages": list(settings.stages),
        "order": settings.order,
        "scope": settings.scope,
        "measured": list(MEASURED),
        "inputs": [settings.inputs, _of_gradients(settings.inputs)],
        "limit": data.limit,
        "seed": subject.cfg.seed,
    }


def _read(path: Path, about: dict[str, Any]) -> dict[str, SiteStatistics]:
    found, of_file = load_statistics(path)
    for what, value in about.items():
        if of_file.get(what) != value:
            raise SettingError(
                f"exprune.calibration={path}: made for {what}={of_file.get(what)}, not {value}; "
                "set it to null to calibrate this network"
            )
    return found
