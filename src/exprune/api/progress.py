"""A progress bar, shown if tqdm is installed and the output is a terminal."""

from collections.abc import Iterable
from typing import Any


def bar(items: Iterable, what: str, total: int | None = None) -> Iterable[Any]:
    """The items, iterated with a progress bar labelled ``what``."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, disable=None, leave=False)
