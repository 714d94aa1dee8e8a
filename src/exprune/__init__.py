"""Dynamic pruning of PyTorch models: skip computations that do not matter for an input, and count what this saves.

```python
calibration = exprune.calibrate(model, batches)
curve = exprune.tradeoff(model, calibration, batches)
with exprune.prune(model, calibration, kl=0.01) as run:
    model(**inputs)
print(run.flops)
```

`exprune.core` contains the method, `exprune.lab` reproduces the published results, and `exprune.fast` runs the method
in real time on a CPU. The names in this module are imported on first use, and require torch only.
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
