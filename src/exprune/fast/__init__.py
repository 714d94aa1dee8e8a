"""Faster decoding on a CPU: the tests of `exprune.core` as compiled kernels that read fewer weights.

```python
with faster(model, sites, heuristic):
    model.generate(...)
```

This package is optional and requires numba: ``pip install 'exprune[fast]'``.
"""

import importlib.util

if importlib.util.find_spec("numba") is None:
    raise ModuleNotFoundError("exprune.fast needs numba: pip install 'exprune[fast]'", name="numba")

from exprune.fast.context import faster

__all__ = ["faster"]
