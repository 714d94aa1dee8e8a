"""What a heuristic is shown of a site's neurons after a stage."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.decisions.table import DecisionTable
from exprune.core.discovery.sites import Site


@dataclass(frozen=True)
class Prefix:
    """What is known of a site's neurons once ``n`` of their ``terms`` terms are evaluated.

    All in units of the pre-activation, ``z = sum of all terms + r``: ``s``, (rows, outputs) of a Linear or (inputs,
    outputs, *space) of a convolution, some of a batch at a time, is the sum of the first n terms, ``q``
    the sum of their squares (None unless the heuristic needs squares), ``r`` what is added to the terms in any
    case (bias, BatchNorm's shift, residual), a tensor that broadcasts with ``s``, or 0.0 where there is nothing.
    ``terms`` is a tensor that broadcasts with ``s`` where static pruning removed weights. ``tau`` is this site's knob.
    ``plan`` holds the stages and what each costs. ``rows`` (bool, broadcasts with ``s``) is False where a row is no
    data; None: all are. ``full`` is the true z, of which nothing that is to save work can know: for oracles,
    and None unless the heuristic needs it. ``s`` and ``q`` are overwritten by what comes next: copy what is to be kept.
    ``table`` is what the heuristic's ``solve`` gave before the run.

    Of a site whose terms come in the order of each input, all tensors are (rows, outputs), of a convolution too: a row
    for every position; ``rest``, (rows, 1), is the norm of the terms that a row has left, ``norm`` that of all of them;
    ``weight`` is what a row is multiplied by, (kernel * terms, outputs), the kernel's positions outermost; ``gate`` is
    what the outputs will be multiplied by, (rows, outputs), where a site that came before is the gate of this one.

    ``s`` is ``scale * part``, with one scale per output channel (None: 1), and is not computed unless it is asked for.
    ``kept`` is for what a heuristic works out once for all rows and stages of a batch: a new dict for every batch.
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
        """How many dimensions there are behind the outputs'."""
        return 0 if self.plan.by_input else self.site.spatial_dims

    @cached_property
    def s(self) -> Tensor:
        return self.part if self.scale is None else self.part * self.scale
