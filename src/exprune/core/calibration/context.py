"""Base class of contexts that measure what passes through the sites of a model."""

from typing import Any, Self

from torch import Tensor

from exprune.core.tracing.known import KnownSites
from exprune.core.tracing.observer import Observer
from exprune.core.tracing.tracer import Compute, Tracer


class Calibration(Observer):
    """An observer that is also the context in which it observes.

    Attributes:
        rows: Which rows of the current batch are data; see `ExPrune`. Other rows are ignored.
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
