"""Methods that take the place of a module's own for a while, in it and in no copy of it."""

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_methods(module: nn.Module, **methods: Callable) -> None:
    """Call these in place of its class's, until :func:`restore_methods`."""

    def own_state() -> Any:
        # What copy and pickle take. A method that is bound to this module would serve it from the copy, too.
        return {name: value for name, value in type(module).__getstate__(module).items() if name not in methods}

    methods["__getstate__"] = own_state
    module.__dict__.update(methods)


def restore_methods(module: nn.Module, *names: str) -> None:
    for name in ("__getstate__", *names):
        module.__dict__.pop(name, None)
