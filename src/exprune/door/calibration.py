"""What is measured of a model once: which layers can be pruned, and how their partial sums foretell the full ones."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core import (
    InputVariances,
    Recorder,
    Site,
    SiteStatistics,
    SquaredGradients,
    select_sites,
    term_order,
)
from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.backward import frozen, signed
from exprune.core.discovery.find import sites_in
from exprune.core.errors import SettingError
from exprune.core.heuristics.calibrated_test import default_stages
from exprune.core.tensor_files import read_tensors
from exprune.door.batches import Batches, Call, data_rows
from exprune.door.change import in_rows, measure_of, output_of
from exprune.door.progress import bar

Loss = Callable[[Any, Any, torch.Generator], Tensor]

_FORMAT = "exprune calibration 1"
_MEASURED = "slope offset sd order gradient rest magnitudes gate outputs factor weighed".split()


@dataclass(frozen=True)
class Calibration:
    """What was measured of a model.

    Attributes:
        statistics: of every layer that can be pruned, by name.
        refused: of the others why not, by name.
        measure: what the change of the outputs is measured by, see :class:`~exprune.door.change.Change`.
        model: the fingerprint of the model's weights.
        scope: as of :func:`~exprune.core.select_sites`.
        batches: those that it was measured on; None where it was loaded.
    """

    statistics: dict[str, SiteStatistics]
    refused: dict[str, str]
    measure: str
    model: str
    scope: str
    batches: Batches | None = field(default=None, repr=False, compare=False)

    def sites(self, model: nn.Module, batches: Batches) -> list[Site]:
        """The model's layers, those that were not calibrated with that as their reason.

        Raises:
            SettingError: this is the calibration of another model.
        """
        if fingerprint_of(model) != self.model:
            raise SettingError("the calibration is of another model, or its weights have changed: calibrate this one")
        found = select_sites(sites_of(model, batches), None, self.scope)
        return [
            replace(site, reason=self.refused.get(site.name, "was not calibrated"))
            if site.eligible and site.name not in self.statistics
            else site
            for site in found
        ]

    def save(self, path: Path | str) -> None:
        """Write it as safetensors."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}/{what}": value.contiguous()
            for name, of in self.statistics.items()
            for what in _MEASURED
            if isinstance(value := getattr(of, what), Tensor)
        }
        sites = {
            name: [of.stages, of.order if isinstance(of.order, str) else None] for name, of in self.statistics.items()
        }
        about = {"measure": self.measure, "model": self.model, "scope": self.scope, "refused": self.refused}
        save_file(tensors, path, {"format": _FORMAT, "about": json.dumps(about), "sites": json.dumps(sites)})

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """Read what :meth:`save` wrote; executes no code.

        Raises:
            SettingError: there is no such file, or it holds none of this version.
        """
        lines = "no calibration can be read from it", "holds no calibration of this version; calibrate anew"
        tensors, metadata = read_tensors(path, _FORMAT, *lines)
        statistics = {}
        for name, (stages, order) in json.loads(metadata["sites"]).items():
            values: dict[str, Any] = {what: tensors.get(f"{name}/{what}") for what in _MEASURED}
            statistics[name] = SiteStatistics(tuple(stages), **{**values, "order": order or values["order"]})
        return cls(statistics, **json.loads(metadata["about"]))

    def __str__(self) -> str:
        stages = sorted({n for of in self.statistics.values() for n in of.stages})
        return (
            f"{len(self.statistics)} layers can be pruned after {stages} terms, {len(self.refused)} cannot; "
            f"changes are measured by {self.measure}"
        )


def calibrate(
    model: nn.Module,
    batches: Any,
    *,
    call: Call | None = None,
    sites: Sequence[str] | str | None = None,
    scope: str = "all",
    order: str = BY_INPUT,
    stages: Sequence[int] | None = None,
    loss: Loss | None = None,
    measure: str | None = None,
    seed: int = 0,
) -> Calibration:
    """Measure a model on batches of its inputs, without their labels.

    A quarter of them is propagated forwards and back, then all of them forwards.

    Args:
        model: any module in eval mode.
        batches: some hundreds of inputs, see :class:`~exprune.door.batches.Batches`.
        call: calls the model with a batch, where it cannot be told how.
        sites: names of the layers to prune, or wildcards; None: all that can be.
        scope: ``all``, or ``relu``: layers before an activation alone, that do not read the raw input.
        order: of evaluation, see :func:`~exprune.core.term_order`.
        stages: terms evaluated before each test; None: those that suit the order and the widest layer.
        loss: of (outputs, batch, generator), summed over the examples, whose gradients say how much each neuron
            matters; None: what has those of the measure.
        measure: ``kl`` or ``relative``; None: ``kl`` where the outputs are logits.
        seed: of what is drawn.

    Raises:
        SettingError: the model or a batch does not suit, or no layer can be pruned.
    """
    given = Batches(model, batches, call)
    if measure not in (None, "kl", "relative"):
        raise SettingError(f"measure={measure!r}: kl, relative, or None")
    measure = measure or measure_of(given, model)
    found = select_sites(sites_of(model, given), sites, scope)
    eligible = [site for site in found if site.eligible]
    if not eligible:
        reasons = "; ".join(f"{site.name}: {site.reason}" for site in found)
        raise SettingError(f"no layer of the model can be pruned ({reasons or 'there is none'})")
    generator = torch.Generator().manual_seed(seed)
    some = given.part(slice(None, None, 4)) if len(given) > 3 else given
    own = loss or (_signs_of_logits if measure == "kl" else _signs_of_values)
    with frozen(model), SquaredGradients(found) as gradients, InputVariances(found) as variances:
        for batch in bar(some, "gradients", len(some)):
            gradients.rows = variances.rows = data_rows(batch)
            with torch.enable_grad():
                own(given.call(model, batch), batch, generator).backward()
    reached, squared = variances.variances(), gradients.mean()
    found = [
        replace(site, reason="was not reached by the batches") if site.eligible and site.name not in reached else site
        for site in found
    ]
    orders = {site.name: term_order(site, reached[site.name], order) for site in found if site.eligible}
    stages = tuple(stages) if stages is not None else stages_for(order, max(site.terms for site in eligible))
    with torch.no_grad(), Recorder(found, stages, orders) as recorder:
        for batch in bar(given, "calibration", len(given)):
            recorder.rows = data_rows(batch)
            given.call(model, batch)
    statistics = {name: replace(of, gradient=squared[name]) for name, of in recorder.statistics().items()}
    refused = {site.name: site.reason or "is too short for a test" for site in found if site.name not in statistics}
    return Calibration(statistics, refused, measure, fingerprint_of(model), scope, given)


def stages_for(order: str, terms: int) -> tuple[int, ...]:
    """Stages that suit an order and layers of so many terms: those of the order, and doublings above them."""
    stages = list(default_stages(order))
    while stages[-1] * 2 < terms:
        stages.append(stages[-1] * 2)
    return tuple(stages)


def fingerprint_of(model: nn.Module) -> str:
    """Of a model's parameters and buffers, by their names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        if plain.numel():
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def sites_of(model: nn.Module, batches: Batches) -> list[Site]:
    """The layers that the first of the batches reaches."""
    batch = next(iter(batches))
    return sites_in(model, lambda: batches.call(model, batch))


def _signs_of_logits(output: Any, batch: Any, generator: torch.Generator) -> Tensor:
    return signed(in_rows(output_of(output), batch).float(), generator)


def _signs_of_values(output: Any, batch: Any, generator: torch.Generator) -> Tensor:
    """As :func:`signed`, of half the squared error in units of an example's squared output."""
    out = output_of(output).float()
    rows = data_rows(batch)
    out = out[rows] if rows is not None and rows.shape == out.shape[: rows.dim()] else out
    signs = 2.0 * torch.randint(0, 2, out.shape, generator=generator, dtype=torch.int8).to(out.device) - 1
    with torch.no_grad():
        scale = out.square().sum() / len(out)
    return (out * signs).sum() / scale.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
