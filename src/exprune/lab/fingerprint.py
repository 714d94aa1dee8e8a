"""Fingerprints: short strings that identify the values that determine a result.

Everything that is cached (a pass, a measured setting, a calibration, a study) is stored under the fingerprint of
everything that determines it.
"""

import hashlib
import inspect
import itertools
import platform
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import exprune
from exprune.core import Heuristic
from exprune.core.calibration.files import raw


def fingerprint(*values: Any) -> str:
    """The fingerprint of plain values, containers, tensors and arrays (by their bytes), heuristics and dataclasses.

    The order of a mapping matters, as it does when patterns are looked up. Other values (a function, a file) cannot be
    compared. Their fingerprint is never the same again, so nothing is cached for them.
    """
    digest = hashlib.sha256()
    for piece in _pieces(values):
        digest.update(piece)
    return digest.hexdigest()


def code_digest(module: nn.Module) -> str:
    """The fingerprint of the source files that define a module's classes and those of its submodules."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    files = {str(getattr(sys.modules.get(kind.__module__), "__file__", None)) for kind in kinds}
    return fingerprint(*(Path(file).read_bytes() for file in sorted(files) if file.endswith(".py")))


def versions() -> dict[str, str]:
    """The versions of the packages that determine what is measured."""
    packages = ("exprune", "torch", "lightning", "torchmetrics", "transformers", "torch_geometric", "rdkit")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@cache
def programs() -> str:
    """The fingerprint of these versions and of our own source code, which changes between versions."""
    folder = Path(exprune.__file__).parent
    return fingerprint(versions(), [path.read_bytes() for path in sorted(folder.rglob("*.py"))])


def _pieces(value: Any) -> Iterator[bytes]:
    kind = type(value)
    if value is None or isinstance(value, str | bytes | int | float | complex):
        text = value if isinstance(value, bytes) else repr(value).encode()
        yield b"%s %d " % (kind.__name__.encode(), len(text)) + text  # the length separates adjacent values
    elif isinstance(value, Tensor | np.ndarray | np.generic):
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        yield f"tensor {tensor.dtype} {tuple(tensor.shape)} ".encode()
        yield raw(tensor)
    elif isinstance(value, Mapping):
        yield b"mapping %d " % len(value)
        for key, one in value.items():
            yield from itertools.chain(_pieces(key), _pieces(one))
    elif isinstance(value, Sequence):
        yield b"sequence %d " % len(value)  # lists and tuples alike, because configurations contain only lists
        for one in value:
            yield from _pieces(one)
    elif isinstance(value, Heuristic):
        yield from _pieces([_classes(kind), value.__getstate__()])
    elif is_dataclass(value) and not isinstance(value, type):
        decide = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        yield from _pieces([kind.__qualname__, decide])
    elif hasattr(value, "to_dict"):  # a batch of graphs
        yield from _pieces([kind.__qualname__, value.to_dict()])
    else:
        yield uuid.uuid4().bytes


def _classes(kind: type) -> list[str]:
    """The names of a heuristic's classes and their source code, which a user may change between two runs."""
    ours = [one for one in kind.__mro__ if one is not Heuristic and issubclass(one, Heuristic)]
    found = []
    for one in ours:
        try:
            source = inspect.getsource(one)
        except (OSError, TypeError):  # defined interactively
            source = uuid.uuid4().hex
        found += [f"{one.__module__}.{one.__qualname__}", source]
    return found
