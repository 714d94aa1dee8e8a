"""Write files atomically, and read files that may be damaged or of another version."""

import contextlib
import functools
import importlib.util
import logging
import math
import os
import pickle
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, TypeVar

from exprune.errors import SettingError

if TYPE_CHECKING:  # reading file names should not import torch, which takes seconds
    from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")

TORCH_FILES = (".ckpt", ".pt", ".pth", ".bin")  # files of torch.save


class CannotWriteError(SettingError):
    """A file cannot be written; the message gives the reason."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: cannot be written ({why}); choose another folder")
        self.path, self.why = path, str(why)


def kept(path: Path, read: Callable[[Path], T], otherwise: str) -> T | None:
    """Read an optional file. Returns None if it does not exist, or, with a warning, if it is not usable.

    Args:
        path: The file.
        read: Reads the file. It may raise any exception if the file is not as we write it.
        otherwise: What happens if the file is not usable, for the warning; for example "it is made anew".
    """
    try:
        return read(path)
    except Exception as error:  # a damaged file can cause any exception
        if path.exists():  # otherwise there never was a file, or another job has removed it
            log.warning("%s; %s", _unusable(path, error), otherwise)
        return None


def named(path: Path, read: Callable[[Path], T]) -> T:
    """Read a file that a setting names.

    Raises:
        SettingError: If ``read`` raises anything. The message is one line and names the file.
    """
    try:
        return read(path)
    except Exception as error:
        raise SettingError(_unusable(path, error)) from error


def _unusable(path: Path, error: Exception) -> str:
    if isinstance(error, SettingError) and str(path.with_name(path.stem.partition("-1of")[0])) in str(error):
        return str(error)  # the message already names the file or a part of it
    why = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, pickle.UnpicklingError):  # its message advises to execute the file's code
        why = "it contains something other than tensors and numbers"
    return f"{path}: cannot be used ({shorten(why, 120, placeholder=' ...')})"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then rename it to ``path``.

    Raises:
        CannotWriteError: If the folder is not writable.
    """
    partial = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise CannotWriteError(path, error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):  # also if a parent is not a folder
            partial.unlink()


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder next to ``path``, then rename it. An existing folder is replaced.

    Raises:
        CannotWriteError: If the folder is not writable.
    """
    partial = _beside(path)
    try:
        partial.mkdir(parents=True)
        write(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise CannotWriteError(path, error.strerror or error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A temporary name unique to this process: jobs on several machines may write the same cache."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def save_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str], most: float = math.inf
) -> Path:
    """Save tensors in the safetensors format, which cannot contain code.

    Args:
        path: The file to write.
        tensors: The tensors by name.
        metadata: Strings to store with them.
        most: The largest size of a file in bytes. More data is divided into ``STEM-1of3.safetensors``,
            ``STEM-2of3.safetensors`` and so on.

    Returns:
        The file to load, which is the first part if there are several.
    """
    _needs_safetensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: Path, part: "Mapping[str, Tensor]") -> None:
        try:
            save_file(dict(part), partial, metadata=dict(metadata))
        except SafetensorError as error:  # it wraps OSErrors of writing
            raise OSError(str(error)) from error

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    parts: list[dict[str, Tensor]] = [{}]
    for name, tensor in contiguous.items():
        if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + tensor.nbytes > most:
            parts.append({})
        parts[-1][name] = tensor
    paths = [path] if len(parts) == 1 else parts_of(path, len(parts))
    for one, part in reversed(list(zip(paths, parts, strict=True))):  # the first part last: its presence means complete
        write_whole(one, functools.partial(write, part=part))
    return paths[0]


def _needs_safetensors(path: Path) -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise SettingError(f"{path}: reading and writing it needs the package safetensors; pip install safetensors")


def parts_of(path: Path, count: int) -> list[Path]:
    """The paths of the parts of a file."""
    return [path.with_stem(f"{path.stem}-{number}of{count}") for number in range(1, count + 1)]


def check_file(path: Path) -> None:
    """Check that a path is a file of weights.

    Raises:
        SettingError: If it is not. For a folder, the message names a file in it.
    """
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".safetensors", *TORCH_FILES))
        if (path / "config.json").is_file():
            right = f"a pretrained model of transformers is named by model=hf model.pretrained={path}"
        elif files:
            right = f"name a file in it, such as {path / files[0]}"
        else:
            right = "name a file of train.py (.safetensors), a checkpoint of Lightning or a saved state_dict"
        raise SettingError(f"{path}: is a folder, not a file of weights; {right}")
    if not path.exists():
        raise SettingError(f"{path}: no such file")
    if not path.is_file():
        raise SettingError(f"{path}: is not a regular file; name a file of weights")


def load_tensors(path: Path, form: str | None = None) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Load the tensors and metadata of a safetensors file. The first of several parts loads all of them.

    Args:
        path: The file to read.
        form: The required value of ``format`` in the metadata. None accepts any.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        SettingError: If the file is missing, truncated or of another format, or if its parts do not belong together.
    """
    _needs_safetensors(path)
    from safetensors import SafetensorError, safe_open

    first = re.fullmatch(r"(.+)-1of(\d+)", path.stem)
    paths = parts_of(path.with_stem(first[1]), int(first[2])) if first else [path]
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for one in paths:
        check_file(one)
        try:
            with safe_open(one, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise SettingError(f"{one}: not a whole safetensors file ({error})") from error
        if one != paths[0] and about != metadata:
            raise SettingError(f"{one}: not a part of the same weights as {paths[0]}; its metadata differ")
        metadata = about
    if form is not None and metadata.get("format") != form:
        raise SettingError(f"{path}: its format is {metadata.get('format')!r}, not {form!r}")
    return tensors, metadata
