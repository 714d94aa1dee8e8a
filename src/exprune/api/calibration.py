"""Calibration of a model: which layers can be pruned, and how their partial sums predict the full sums."""

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

_ABOUT = ("refused", "measure", "model", "scope")  # attributes that are stored in the file's metadata


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`: the statistics of every layer that can be pruned.

    Attributes:
        statistics: The statistics of each layer that can be pruned, by the layer's name.
        refused: The reason why each other layer cannot be pruned, by the layer's name.
        measure: How a change of the outputs is measured, ``"kl"`` or ``"relative"``; see `Change`.
        model: A fingerprint of the model's weights. A calibration is valid for these weights only.
        scope: Which layers were considered, ``"all"`` or ``"relu"``; see `calibrate`.
        batches: The calibration batches, or None if the calibration was loaded from a file.

    Example:
        ```python
        calibration = exprune.calibrate(model, batches)
        calibration.save("calibration.safetensors")
        calibration = exprune.Calibration.load("calibration.safetensors")
        ```
    """

    statistics: dict[str, SiteStatistics]
    refused: dict[str, str]
    measure: str
    model: str
    scope: str
    batches: Batches | None = field(default=None, repr=False, compare=False)

    def sites(self, model: nn.Module, batches: Batches) -> list[Site]:
        """Find the model's layers. A layer that was not calibrated is not eligible and carries the reason.

        Args:
            model: The model that was calibrated.
            batches: Batches of its inputs; the first one is run.

        Returns:
            All layers that the batch reaches, in the order of their calls.

        Raises:
            SettingError: If the calibration belongs to another model or to other weights.
        """
        if network_digest(model) != self.model:
            raise SettingError("the calibration is of another model, or its weights have changed; calibrate again")
        found = select_sites(sites_of(model, batches), None, self.scope)
        return [
            replace(site, reason=self.refused.get(site.name, "was not calibrated"))
            if site.eligible and site.name not in self.statistics
            else site
            for site in found
        ]

    def save(self, path: Path | str) -> None:
        """Save the calibration in the safetensors format, without its batches.

        Args:
            path: The file to write.
        """
        save_statistics(Path(path), self.statistics, {what: getattr(self, what) for what in _ABOUT})

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """Load a calibration that `save` wrote. Loading executes no code.

        Args:
            path: The file to read.

        Returns:
            The calibration, with ``batches=None``.

        Raises:
            SettingError: If the file does not exist or is not a calibration of this version.
        """
        statistics, about = load_statistics(Path(path))
        if missing := [what for what in _ABOUT if what not in about]:
            raise SettingError(f"{path}: it has no {missing[0]}; it was made by the command line, not by calibrate()")
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
    """Measure a model's statistics on batches of its inputs. Labels are not needed.

    A quarter of the batches is run forward and backward, for the gradients. Then all of them are run forward.

    Args:
        model: A module in eval mode.
        batches: A DataLoader or a list of batches with a few hundred inputs. A batch is a tensor, a tuple
            (inputs, labels), a mapping of keyword arguments, a ``Data`` object of PyTorch Geometric, or whatever
            ``call`` accepts.
        call: A function ``call(model, batch)`` that runs the model. By default, the usual ways to call a model are
            tried.
        sites: Names of the layers to prune; wildcards are allowed. None means all layers that can be pruned.
        scope: ``"all"``, or ``"relu"`` for only those layers that feed an activation and do not read the raw input.
        order: The order in which a neuron's terms are evaluated. ``"input"`` starts with the largest terms of each
            input; ``"layer"``, ``"neuron"`` and ``"model"`` are fixed orders, see `exprune.core.term_order`.
        stages: How many terms are evaluated before each test, ascending. None chooses stages that suit the order and
            the widest layer.
        loss: A function ``loss(outputs, batch, generator)`` that returns the loss, summed over the examples. Its
            gradients say how much each neuron matters. None uses a loss without labels that suits ``measure``.
        measure: ``"kl"`` or ``"relative"``, see `Change`. None means ``"kl"`` if the outputs are logits, and
            ``"relative"`` otherwise.
        seed: Seed of the random draws.

    Returns:
        The calibration, which `tradeoff` and `prune` take.

    Raises:
        SettingError: If the model or a batch is not valid, or if no layer can be pruned.

    Example:
        ```python
        calibration = exprune.calibrate(model.eval(), loader)
        print(calibration)  # how many layers can be pruned
        ```
    """
    given = Batches(model, batches, call)
    if measure not in (None, "kl", "relative"):
        raise SettingError(f"measure={measure!r}: must be 'kl', 'relative' or None")
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
    return SettingError(f"no layer of the model can be pruned ({why or 'it has no linear layer or convolution'})")


def _steps(batches: Batches, what: str, run: Callable[[Any], Any]) -> Iterator[tuple[Tensor | None, Callable[[], Any]]]:
    for batch in bar(batches, what, len(batches)):
        yield data_rows(batch), partial(run, batch)


def too_short(site: Site, stages: Sequence[int]) -> str | None:
    """The reason why a site has too few terms for the first stage; None if it has enough."""
    return f"has {site.terms} terms, and the first test comes after {stages[0]}" if site.terms <= stages[0] else None


def stages_for(order: str, terms: int) -> tuple[int, ...]:
    """The default stages of an order, continued by doubling up to the given number of terms."""
    stages = list(default_stages(order))
    while stages[-1] * 2 < terms:
        stages.append(stages[-1] * 2)
    return tuple(stages)


def sites_of(model: nn.Module, batches: Batches) -> list[Site]:
    """All layers that the first batch reaches."""
    batch = next(iter(batches))
    return sites_in(model, lambda: batches.call(model, batch))


def _signs_of_logits(output: Any, batch: Any, generator: torch.Generator) -> Tensor:
    return signed(in_rows(output_of(output), batch).float(), generator)


def _signs_of_values(output: Any, batch: Any, generator: torch.Generator) -> Tensor:
    """Like `signed`, for half the squared error in units of the mean squared output of an example."""
    out = output_of(output).float()
    rows = data_rows(batch)
    out = out[rows] if rows is not None and rows.shape == out.shape[: rows.dim()] else out
    signs = 2.0 * torch.randint(0, 2, out.shape, generator=generator, dtype=torch.int8).to(out.device) - 1
    with torch.no_grad():
        scale = out.square().sum() / len(out)
    return (out * signs).sum() / scale.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
