"""Replace methods of a module temporarily; copies of the module keep the original methods."""

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_methods(module: nn.Module, **methods: Callable) -> None:
    """Replace methods of the module's class for this module, until `restore_methods`."""

    def own_state() -> Any:
        # For copy and pickle: a bound method would make the copy call this module.
        return {name: value for name, value in type(module).__getstate__(module).items() if name not in methods}

    methods["__getstate__"] = own_state
    module.__dict__.update(methods)


def restore_methods(module: nn.Module, *names: str) -> None:
    for name in ("__getstate__", *names):
        module.__dict__.pop(name, None)
