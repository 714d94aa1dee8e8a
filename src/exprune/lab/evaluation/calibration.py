"""Statistics for the calibrated tests, from inputs of the training split, and kept (docs/method.md, section 8)."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from tqdm import tqdm

from exprune.core import InputVariances, Recorder, Site, SiteStatistics, SquaredGradients, term_order
from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.backward import frozen
from exprune.core.errors import SettingError
from exprune.core.settings import whole
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.files import kept, load_tensors, named, save_tensors
from exprune.lab.fingerprint import fingerprint
from exprune.lab.tasks.task import Task

log = logging.getLogger(__name__)

_VERSION = 2  # of how it is measured: gradients of language models by random signs
_MEASURED = "slope offset sd order gradient rest magnitudes gate outputs factor weighed".split()


def statistics_of(subject: Subject) -> dict[str, SiteStatistics]:
    """The statistics that ``exprune.stages``, ``order`` and ``inputs`` ask for: read where there are, else measured.

    Raises:
        SettingError: ``exprune.calibration`` names a file of another checkpoint, site list or setting, or no whole one;
            there are too few inputs; or the data has no training split.
    """
    cfg, about = subject.cfg, _about(subject)
    if cfg.exprune.calibration is not None:
        return named(Path(cfg.exprune.calibration).expanduser(), lambda path: _read(path, about))
    decides = [about, _inputs(subject), plain(cfg.model), cfg.trainer.precision]
    name = Path(subject.checkpoint).name.removesuffix(".safetensors")
    path = subject.cached(f"calibrations/{name}-{fingerprint(*decides)[:12]}.safetensors")
    statistics = kept(path, lambda path: _read(path, about), "it is measured anew")
    if statistics is None:
        _write(path, calibrate(subject), about)
        log.info("calibration: %s", path)
        statistics = _read(path, about)
    return statistics


def _inputs(subject: Subject) -> str:
    """The fingerprint of the training inputs that are drawn to calibrate on, whatever the data is called."""
    inputs, generator = _number_of_inputs(subject), torch.Generator().manual_seed(subject.cfg.seed)
    parts = [subject.data.calibration_dataloader(count, generator) for count in (_of_gradients(inputs), inputs)]
    return fingerprint(*(fingerprint(*part) for part in parts))


def _number_of_inputs(subject: Subject) -> int:
    wanted = "a whole number of inputs, at least 1"
    return whole(subject.cfg.exprune.inputs, "exprune.inputs", wanted, lambda inputs: inputs >= 1)


def calibrate(subject: Subject) -> dict[str, SiteStatistics]:
    """Measure: input variances and gradients in one pass forward and back, then the partial sums in their order.

    A quarter of the inputs is enough for the first pass, which costs the most for each.

    Raises:
        SettingError: there are too few inputs, or these do not reach all sites (an expert that none is routed to).
    """
    settings, task, sites = subject.cfg.exprune, subject.task, subject.sites
    _number_of_inputs(subject)
    generator = torch.Generator().manual_seed(subject.cfg.seed)
    some = subject.data.calibration_dataloader(_of_gradients(settings.inputs), generator)
    variances, gradients = _importance(subject.trainer, task, sites, some, generator)
    if unreached := [site.name for site in sites if site.eligible and site.name not in variances]:
        raise SettingError(
            f"exprune.inputs={settings.inputs}: a quarter of them does not reach {unreached[0]}, so that its gradients "
            "are unknown; take more, or leave the layer out of exprune.sites"
        )
    orders = {site.name: term_order(site, variances[site.name], settings.order) for site in sites if site.eligible}
    batches = subject.data.calibration_dataloader(settings.inputs, generator)
    with torch.no_grad(), Recorder(sites, settings.stages, orders) as recorder:
        for batch in _prepared(batches, subject.trainer, task, recorder):
            with subject.trainer.precision_plugin.forward_context():
                task.network(*task.network_inputs(batch))
    measured = recorder.statistics()
    return {name: replace(of, gradient=gradients[name]) for name, of in measured.items()}


def _of_gradients(inputs: int) -> int:
    return math.ceil(inputs / 4)


def _importance(
    trainer: lightning.Trainer,
    task: Task,
    sites: list[Site],
    batches: Iterable,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Variances of the sites' inputs and mean squared gradients at their outputs.

    The loss is that of labels drawn from the network's own predictions, so no true label is used.
    """
    with frozen(task.network), SquaredGradients(sites) as gradients, InputVariances(sites) as variances:
        for batch in _prepared(batches, trainer, task, gradients, variances):
            with torch.enable_grad(), trainer.precision_plugin.forward_context():
                loss = task.sampled_loss(batch, generator)
            loss.backward()
    return variances.variances(), gradients.mean()


def _prepared(batches: Iterable, trainer: lightning.Trainer, task: Task, *contexts: Any) -> Iterator[Any]:
    """The batches on the trainer's device; each of the contexts knows which of their rows are data."""
    device = trainer.strategy.root_device
    task.to(device).eval()
    for batch in tqdm(batches, desc="calibration", disable=None, leave=False):
        batch = task.transfer_batch_to_device(batch, device, 0)
        if hasattr(task, "data_rows"):
            rows = task.data_rows(batch)
            for context in contexts:
                context.rows = rows
        yield batch


def _about(subject: Subject) -> dict[str, Any]:
    """What statistics belong to: a file that says anything else is not theirs."""
    settings, data = subject.cfg.exprune, subject.cfg.data
    return {
        "version": _VERSION,
        "weights": subject.network_digest,
        "data": data.get("trained_as", data).name,
        "sites": [site.name for site in subject.sites if site.eligible],
        "stages": list(settings.stages),
        "order": settings.order,
        "scope": settings.scope,
        "measured": list(_MEASURED),
        "inputs": [settings.inputs, _of_gradients(settings.inputs)],
        "limit": data.limit,
        "seed": subject.cfg.seed,
    }


def _write(path: Path, statistics: dict[str, SiteStatistics], about: dict[str, Any]) -> None:
    tensors = {
        f"{name}/{what}": value
        for name, of in statistics.items()
        for what in _MEASURED
        if isinstance(value := getattr(of, what), Tensor)
    }
    stages = {name: of.stages for name, of in statistics.items()}
    save_tensors(path, tensors, {"about": json.dumps(about), "stages": json.dumps(stages)})


def _read(path: Path, about: dict[str, Any]) -> dict[str, SiteStatistics]:
    tensors, metadata = load_tensors(path)
    if "about" not in metadata or "stages" not in metadata:
        raise SettingError(f"exprune.calibration={path}: no calibration file; its metadata says nothing of sites")
    of_file = json.loads(metadata["about"])
    for what, value in about.items():
        if of_file.get(what) != value:
            raise SettingError(
                f"exprune.calibration={path}: made for {what}={of_file.get(what)}, not {value}; "
                "null makes one for this network"
            )
    found, by_input = {}, about["order"] == BY_INPUT
    needed = {"slope", "offset", "sd", "gradient"}
    needed |= {"rest", "magnitudes"} if by_input else {"order"} if about["order"] != "model" else set()
    for name, stages in json.loads(metadata["stages"]).items():
        values: dict[str, Any] = {what: tensors.get(f"{name}/{what}") for what in _MEASURED}
        if missing := sorted(what for what in needed if values[what] is None):
            raise ValueError(f"no {missing[0]} of {name}")
        if by_input:
            values["order"] = BY_INPUT
        found[name] = SiteStatistics(tuple(stages), **values)
    return found
