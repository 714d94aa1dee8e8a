"""What is measured of a model once: which layers can be pruned, and how their partial sums foretell the full ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exprune.api.batches import Batches, Call, data_rows
from exprune.api.change import in_rows, measure_of, output_of
from exprune.api.progress import bar
from exprune.core import Site, SiteStatistics, select_sites
from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.backward import signed
from exprune.core.calibration.files import load_statistics, network_digest, save_statistics
from exprune.core.calibration.measure import measure_statistics
from exprune.core.discovery.find import sites_in
from exprune.core.errors import SettingError
from exprune.core.heuristics.calibrated_test import default_stages

Loss = Callable[[Any, Any, torch.Generator], Tensor]

_ABOUT = ("refused", "measure", "model", "scope")  # what a file says of itself


@dataclass(frozen=True)
class Calibration:
    """What was measured of a model.

    Attributes:
        statistics: of every layer that can be pruned, by name.
        refused: of the others why not, by name.
        measure: what the change of the outputs is measured by, see :class:`~exprune.api.change.Change`.
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
        if network_digest(model) != self.model:
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
        save_statistics(Path(path), self.statistics, {what: getattr(self, what) for what in _ABOUT})

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """Read what :meth:`save` wrote; executes no code.

        Raises:
            SettingError: there is no such file, or it holds none of this version.
        """
        statistics, about = load_statistics(Path(path))
        if missing := [what for what in _ABOUT if what not in about]:
            raise SettingError(f"{path}: a calibration of the command line, which says nothing of its {missing[0]}")
        return cls(statistics, **{what: about[what] for what in _ABOUT})

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
        batches: some hundreds of inputs, see :class:`~exprune.api.batches.Batches`.
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
        raise _nothing_to_prune({site.name: site.reason for site in found})
    generator = torch.Generator().manual_seed(seed)
    some = given.part(slice(None, None, 4)) if len(given) > 3 else given
    own = loss or (_signs_of_logits if measure == "kl" else _signs_of_values)
    stages = tuple(stages) if stages is not None else stages_for(order, max(site.terms for site in eligible))
    losses = _steps(some, "gradients", lambda batch: own(given.call(model, batch), batch, generator))
    calls = _steps(given, "calibration", lambda batch: given.call(model, batch))
    statistics, refused = measure_statistics(model, found, losses, calls, order, stages)
    reasons = {site.name: refused.get(site.name) or site.reason or too_short(site, stages) for site in found}
    if not statistics:
        raise _nothing_to_prune(reasons)
    left = {name: reason for name, reason in reasons.items() if reason is not None and name not in statistics}
    return Calibration(statistics, left, measure, network_digest(model), scope, given)


def _nothing_to_prune(reasons: dict[str, str | None]) -> SettingError:
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return SettingError(f"no layer of the model can be pruned ({why or 'there is none'})")


def _steps(batches: Batches, what: str, run: Callable[[Any], Any]) -> Iterator[tuple[Tensor | None, Callable[[], Any]]]:
    for batch in bar(batches, what, len(batches)):
        yield data_rows(batch), partial(run, batch)


def too_short(site: Site, stages: Sequence[int]) -> str | None:
    """Why no test fits into a site's terms; None where one does."""
    return f"{site.terms} terms, none behind the first test at {stages[0]}" if site.terms <= stages[0] else None


def stages_for(order: str, terms: int) -> tuple[int, ...]:
    """Stages that suit an order and layers of so many terms: those of the order, and doublings above them."""
    stages = list(default_stages(order))
    while stages[-1] * 2 < terms:
        stages.append(stages[-1] * 2)
    return tuple(stages)


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
