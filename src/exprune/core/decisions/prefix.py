"""What a heuristic knows about a site's neurons after a stage."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.decisions.table import DecisionTable
from exprune.core.discovery.sites import Site


@dataclass(frozen=True)
class Prefix:
    """What is known about a site's neurons after ``n`` of their terms are evaluated.

    All values are in units of the pre-activation, ``z = (sum of all terms) + r``. Sums have the shape (rows, outputs)
    for a Linear layer and (inputs, outputs, *space) for a convolution, and hold part of a batch. In the order of each
    input, a convolution is seen as (rows, outputs) too, with one row per position. The next stage overwrites ``s`` and
    ``q``; clone what must be kept.

    Attributes:
        site: The site.
        stage: The index of the test.
        n: The number of terms evaluated so far.
        terms: The number of terms N. Under a static mask it is a tensor that broadcasts with ``s``.
        tau: The site's setting.
        part: The sum of the first n terms before scaling. Tests of ``part`` save a pass over the sums.
        scale: The factor of each output channel, so that ``s = scale * part``; None means 1.
        q: The sum of the squares of the first n terms; None unless the heuristic needs squares.
        r: What is added to the terms in any case (bias, BatchNorm's shift, residual): a tensor that broadcasts with
            ``s``, or 0.0.
        plan: The stages and their costs.
        rows: False for rows that are padding (bool, broadcasts with ``s``); None means that all rows are data.
        full: The exact z, for oracles; None unless the heuristic needs it.
        kept: A dict for values that a heuristic computes once for all rows and stages of a batch. It is empty at the
            start of each batch.
        rest: The norm of the terms that each row has not evaluated yet (rows, 1); only in the order of each input.
        norm: The norm of all terms of each row (rows, 1); only in the order of each input.
        weight: The weights that rows are multiplied by (kernel * terms, outputs), the kernel's positions outermost;
            only in the order of each input.
        gate: The outputs of the gate that will multiply this site's outputs (rows, outputs); None if there is no gate,
            or if it was not computed yet.
        table: The decision table that the heuristic's `solve` returned, if any.
    """

    site: Site
    stage: int
    n: int
    terms: int | Tensor
    tau: Any
    part: Tensor
    scale: Tensor | None
    q: Tensor | None
    r: Tensor | float
    plan: Plan
    rows: Tensor | None = None
    full: Tensor | None = None
    kept: dict[Any, Any] = field(default_factory=dict)
    rest: Tensor | None = None
    norm: Tensor | None = None
    weight: Tensor | None = None
    gate: Tensor | None = None
    table: DecisionTable | None = None

    @property
    def spatial_dims(self) -> int:
        """The number of dimensions after the channel dimension."""
        return 0 if self.plan.by_input else self.site.spatial_dims

    @cached_property
    def s(self) -> Tensor:
        """The sum of the first n terms, ``scale * part``. It is computed when it is first read."""
        return self.part if self.scale is None else self.part * self.scale
