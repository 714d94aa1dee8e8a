"""ExPrune as a library: prune the ReLU neurons of any PyTorch model, per input, and count what it saves.

    sites = find_sites(model, batch)
    with ExPrune(sites, StatsTest(0.1)) as run:
        out = model(batch)
    print(run.flops)

This package imports torch and the standard library only.
"""

from exprune.core.engine import ExPrune
from exprune.core.errors import SettingError
from exprune.core.flops import Flops, SiteFlops
from exprune.core.heuristics import Heuristic, Prefix, StatsTest, Threshold
from exprune.core.sites import Site, find_sites, select_sites

__all__ = [
    "ExPrune",
    "Flops",
    "Heuristic",
    "Prefix",
    "SettingError",
    "Site",
    "SiteFlops",
    "StatsTest",
    "Threshold",
    "find_sites",
    "select_sites",
]
