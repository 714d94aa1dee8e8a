"""Writing files so that none is ever half-written."""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import Tensor

from exprune.core.errors import SettingError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it.

    Raises:
        SettingError: the folder cannot be written to.
    """
    # Jobs of a sweep, on many machines perhaps, may write the same cache.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors wraps the OSErrors of its own writing
        why = getattr(error, "strerror", None) or error
        raise SettingError(f"{path}: cannot be written ({why}); name another folder") from error
    finally:
        with contextlib.suppress(OSError):  # also where a parent is no folder
            partial.unlink()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, a format that cannot carry code."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda partial: save_file(contiguous, partial, metadata=dict(metadata)))


def load_tensors(path: Path, cached: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; ``cached``: one of our own, which can be made again.

    Raises:
        SettingError: the file is missing, truncated or of another format.
    """
    if not path.is_file():
        raise SettingError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        advice = "delete it, it is made again" if cached else "name another"
        raise SettingError(f"{path}: not a whole safetensors file ({error}); {advice}") from error
