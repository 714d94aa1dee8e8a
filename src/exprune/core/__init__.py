"""ExPrune as a library: prune the ReLU neurons of any PyTorch model, per input, and count what it saves.

    sites = find_sites(model, batch)
    with ExPrune(sites, StatsTest(0.1)) as run:
        out = model(batch)
    print(run.flops)

This package imports torch and the standard library only.
"""

from exprune.core.calibrated import Calibrated, CalibratedTest, Optimal, Oracle
from exprune.core.discovery import find_sites
from exprune.core.dominance import Dominance, HeadRecorder
from exprune.core.engine import ExPrune
from exprune.core.errors import SettingError
from exprune.core.flops import Flops, SiteFlops
from exprune.core.heuristics import Heuristic, Prefix, StatsTest, Threshold
from exprune.core.importance import InputVariances, SquaredGradients, term_order
from exprune.core.moments import Recorder, SiteStatistics
from exprune.core.sites import Site, select_sites

__all__ = [
    "Calibrated",
    "CalibratedTest",
    "Dominance",
    "ExPrune",
    "Flops",
    "HeadRecorder",
    "Heuristic",
    "InputVariances",
    "Optimal",
    "Oracle",
    "Prefix",
    "Recorder",
    "SettingError",
    "Site",
    "SiteFlops",
    "SiteStatistics",
    "SquaredGradients",
    "StatsTest",
    "Threshold",
    "find_sites",
    "select_sites",
    "term_order",
]
