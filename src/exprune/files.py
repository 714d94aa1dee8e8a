"""Writing files so that none is ever half-written, and reading what may be damaged or of another version."""

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

if TYPE_CHECKING:  # what only reads names of files needs no torch, which takes seconds
    from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")

TORCH_FILES = (".ckpt", ".pt", ".pth", ".bin")  # of torch.save


class CannotWriteError(SettingError):
    """A file that cannot be written, and why."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path}: cannot be written ({why}); name another folder")
        self.path, self.why = path, str(why)


def kept(path: Path, read: Callable[[Path], T], otherwise: str) -> T | None:
    """What ``read`` makes of a file that can be done without; None where there is none or, with a line, no use in it.

    Args:
        read: raises whatever it meets where the file holds anything else than we write.
        otherwise: what happens then, for the line: "it is made anew".
    """
    try:
        return read(path)
    except Exception as error:  # what a damaged file can lead to has no end
        if path.exists():  # else there is none, or another job has finished with it meanwhile
            log.warning("%s; %s", _unusable(path, error), otherwise)
        return None


def named(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a file that a setting names.

    Raises:
        SettingError: whatever ``read`` meets, in one line that names the file.
    """
    try:
        return read(path)
    except Exception as error:
        raise SettingError(_unusable(path, error)) from error


def _unusable(path: Path, error: Exception) -> str:
    if isinstance(error, SettingError) and str(path.with_name(path.stem.partition("-1of")[0])) in str(error):
        return str(error)  # names it, or a part of it
    why = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, pickle.UnpicklingError):  # whose advice is to execute it
        why = "it holds anything else than tensors and numbers"
    return f"{path}: cannot be used ({shorten(why, 120, placeholder=' ...')})"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it.

    Raises:
        CannotWriteError: the folder cannot be written to.
    """
    partial = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise CannotWriteError(path, error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):  # also where a parent is no folder
            partial.unlink()


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, then rename it; a folder that is there is replaced.

    Raises:
        CannotWriteError: the folder cannot be written to.
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
    """A name of this process: jobs of a sweep, on many machines perhaps, may write the same cache."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def save_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str], most: float = math.inf
) -> Path:
    """Write tensors as safetensors, a format that cannot carry code; returns the file to name to load them.

    Args:
        most: bytes of a file: more of them go into ``STEM-1of3.safetensors``, ``STEM-2of3.safetensors``, and so on.
    """
    _needs_safetensors(path)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: Path, part: "Mapping[str, Tensor]") -> None:
        try:
            save_file(dict(part), partial, metadata=dict(metadata))
        except SafetensorError as error:  # which wraps the OSErrors of its writing
            raise OSError(str(error)) from error

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    parts: list[dict[str, Tensor]] = [{}]
    for name, tensor in contiguous.items():
        if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + tensor.nbytes > most:
            parts.append({})
        parts[-1][name] = tensor
    paths = [path] if len(parts) == 1 else parts_of(path, len(parts))
    for one, part in reversed(list(zip(paths, parts, strict=True))):  # the first, by which all are found, last
        write_whole(one, functools.partial(write, part=part))
    return paths[0]


def _needs_safetensors(path: Path) -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise SettingError(f"{path}: reading and writing it needs the package safetensors; pip install safetensors")


def parts_of(path: Path, count: int) -> list[Path]:
    """What the parts of a file are called."""
    return [path.with_stem(f"{path.stem}-{number}of{count}") for number in range(1, count + 1)]


def check_file(path: Path) -> None:
    """Whether a file of weights lies there.

    Raises:
        SettingError: there is nothing, or something else; of a folder, which of its files could be named.
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
    """Tensors and metadata of a safetensors file; of the first of several parts, those of all.

    Args:
        form: what its metadata must say its ``format`` is; None: whatever.

    Raises:
        SettingError: the file is missing, truncated or of another format, or its parts are of different files.
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
