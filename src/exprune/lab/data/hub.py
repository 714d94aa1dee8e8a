"""Whether the Hugging Face hub can be reached: its libraries ask again and again before they say that it cannot."""

import os
import socket
from urllib.parse import urlsplit

_SECONDS = 3.0


def without_hub() -> bool:
    """Whether to look in the hub's cache alone: it is switched off, or a connection fails within 3 seconds."""
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
