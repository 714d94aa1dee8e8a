"""The former name of `Teal`."""

import functools
import logging
from collections.abc import Mapping

from exprune.core.calibration.lines import SiteStatistics
from exprune.core.heuristics.heuristic import Tau
from exprune.core.heuristics.teal import Teal

log = logging.getLogger(__name__)


class Magnitude(Teal):
    """Deprecated name of `Teal` with the same share for all layers. It logs this once per process.

    Args:
        tau: See `Teal`.
        statistics: See `Teal`.
    """

    def __init__(self, tau: Tau | None = None, statistics: Mapping[str, SiteStatistics] | None = None) -> None:
        super().__init__(tau, statistics)
        _say_teal()


@functools.cache
def _say_teal() -> None:
    log.info("Magnitude (exprune=magnitude) is called Teal (exprune=teal) now")
