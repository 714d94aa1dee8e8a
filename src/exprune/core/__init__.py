"""The method as a library: prune the neurons of any PyTorch model for each input, and count what this saves.

```python
sites = find_sites(model, batch)
with ExPrune(sites, StatsTest(0.1)) as run:
    out = model(batch)
print(run.flops)
```

This package imports only torch and the standard library.
"""

from exprune.core.accounting.flops import FlopReport, SiteFlops
from exprune.core.calibration.importance import InputVariances, SquaredGradients, term_order
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.calibration.recorder import Recorder
from exprune.core.calls.activations import Activation, register_activation
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.prefix import Prefix
from exprune.core.decisions.table import DecisionTable, load_tables, save_tables
from exprune.core.discovery.find import find_sites
from exprune.core.discovery.sites import Site, select_sites
from exprune.core.errors import SettingError
from exprune.core.heuristics.calibrated import Calibrated
from exprune.core.heuristics.calibrated_test import CalibratedTest
from exprune.core.heuristics.dominance import Dominance, HeadRecorder
from exprune.core.heuristics.from_tables import FromTables
from exprune.core.heuristics.gated import Cats, Chess
from exprune.core.heuristics.heuristic import Heuristic, StatsTest, Threshold
from exprune.core.heuristics.input_rule import InputRule
from exprune.core.heuristics.magnitude import Magnitude
from exprune.core.heuristics.optimal import Optimal
from exprune.core.heuristics.oracle import Oracle
from exprune.core.heuristics.teal import Teal
from exprune.core.heuristics.top_inputs import RSparse, TopK, Wina
from exprune.core.simulation.exprune import ExPrune

__all__ = [
    "Activation",
    "Calibrated",
    "CalibratedTest",
    "Cats",
    "Chess",
    "Choice",
    "DecisionTable",
    "Dominance",
    "ExPrune",
    "FlopReport",
    "FromTables",
    "HeadRecorder",
    "Heuristic",
    "InputRule",
    "InputVariances",
    "Magnitude",
    "Optimal",
    "Oracle",
    "Prefix",
    "RSparse",
    "Recorder",
    "SettingError",
    "Site",
    "SiteFlops",
    "SiteStatistics",
    "SquaredGradients",
    "StatsTest",
    "Teal",
    "Threshold",
    "TopK",
    "Wina",
    "find_sites",
    "load_tables",
    "register_activation",
    "save_tables",
    "select_sites",
    "term_order",
]


def __getattr__(name: str) -> object:
    if name == "Flops":
        import warnings

        warnings.warn("exprune.core.Flops is called FlopReport", DeprecationWarning, stacklevel=2)
        return FlopReport
    raise AttributeError(f"module 'exprune.core' has no attribute {name!r}")
