"""Decoding in real time: the tests that :mod:`exprune.core` counts with, as kernels that read less memory.

    with faster(model, sites, heuristic):
        model.generate(...)

An optional wing, for a CPU: ``pip install 'exprune[fast]'`` brings numba.
"""

import importlib.util

if importlib.util.find_spec("numba") is None:
    raise ModuleNotFoundError("exprune.fast needs numba: pip install 'exprune[fast]'", name="numba")

from exprune.fast.context import faster

__all__ = ["faster"]
