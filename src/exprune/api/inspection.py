"""Find the layers that can be pruned, and the reasons why others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from exprune.api.batches import Batches, Call, data_rows
from exprune.api.calibration import sites_of, too_short
from exprune.core import ExPrune, Site, select_sites
from exprune.core.accounting.plan import BY_INPUT
from exprune.core.heuristics.calibrated_test import default_stages


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`: the layers of a model in the order of their calls. It prints as a table.

    Attributes:
        sites: The layers; see `exprune.core.Site`.
        flops: The FLOPs of the whole batch.
    """

    sites: Sequence[Site]
    flops: int

    def __str__(self) -> str:
        rows = [("layer", "kind", "terms", "outputs", "feeds", "can be pruned")]
        for site in self.sites:
            feeds = site.activation.name if site.before_activation and site.activation is not None else "-"
            rows.append((site.name, site.kind, f"{site.terms:,}", f"{site.outputs:,}", feeds, site.reason or "yes"))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
        able = sum(site.eligible for site in self.sites)
        return "\n".join(
            [*lines, f"{able} of {len(self.sites)} layers can be pruned; the batch costs {self.flops:,} FLOPs"]
        )


def inspect(model: nn.Module, batch: Any, *, call: Call | None = None, scope: str = "all") -> Inspection:
    """List the layers that a batch reaches, and say which can be pruned. Nothing is measured or changed.

    Args:
        model: A module in eval mode.
        batch: One batch of inputs, in any form that `calibrate` accepts.
        call: A function ``call(model, batch)`` that runs the model; see `calibrate`.
        scope: ``"all"`` or ``"relu"``; see `calibrate`.

    Returns:
        The layers with their sizes, the activation that each one feeds, and the reason why it cannot be pruned.

    Raises:
        SettingError: If the model is in training mode or cannot be called with the batch.

    Example:
        ```python
        print(exprune.inspect(model.eval(), images[:8]))
        ```
    """
    given = Batches(model, [batch], call)
    sites = select_sites(sites_of(model, given), None, scope)
    first = default_stages(BY_INPUT)
    sites = [replace(site, reason=too_short(site, first)) if site.eligible else site for site in sites]
    placed = next(iter(given))
    with torch.no_grad(), ExPrune(sites, None, rows=data_rows(placed)) as run:
        given.call(model, placed)
    return Inspection(sites, run.flops.dense)
