"""Measuring what passes through the sites of a model, inside a context."""

from typing import Any, Self

from torch import Tensor

from exprune.core.tracing.known import KnownSites
from exprune.core.tracing.observer import Observer
from exprune.core.tracing.tracer import Compute, Tracer


class Calibration(Observer):
    """An observer that is the context in which it observes.

    Attributes:
        rows: as of :class:`~exprune.core.ExPrune`: rows that are no data teach nothing, and are not counted.
    """

    def __init__(self, sites: KnownSites, compute: Compute | None = None) -> None:
        self.rows: Tensor | None = None
        self._sites, self._compute = sites, compute
        self._tracer: Tracer | None = None

    def __enter__(self) -> Self:
        self._tracer = Tracer(self._sites, [self], compute=self._compute)
        self._tracer.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        tracer, self._tracer = self._tracer, None
        assert tracer is not None
        tracer.__exit__(*exception)
