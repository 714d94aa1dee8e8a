"""What a trained model computes that cannot matter, and what leaving it out saves and changes.

    calibration = exprune.calibrate(model, batches)
    curve = exprune.tradeoff(model, calibration, batches)
    with exprune.prune(model, calibration, kl=0.01) as run:
        model(**inputs)
    print(run.flops)

``exprune.core`` is the method, ``exprune.lab`` its reproduction, ``exprune.fast`` runs it in real time. What stands
here is imported when it is first used, and needs torch alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

from exprune.errors import SettingError

if TYPE_CHECKING:
    from exprune.api.calibration import Calibration, calibrate
    from exprune.api.inspection import inspect
    from exprune.api.pruning import prune
    from exprune.api.tradeoff import Tradeoff, tradeoff

_HOMES = {
    "Calibration": "calibration",
    "calibrate": "calibration",
    "inspect": "inspection",
    "prune": "pruning",
    "Tradeoff": "tradeoff",
    "tradeoff": "tradeoff",
}

__all__ = ["Calibration", "SettingError", "Tradeoff", "calibrate", "inspect", "prune", "tradeoff"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"exprune.api.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'exprune' has no attribute {name!r}")
