"""Reading what was written as safetensors, which executes no code."""

from pathlib import Path

from torch import Tensor

from exprune.core.errors import SettingError


def read_tensors(path: Path | str, form: str, unreadable: str, other: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by their names, and its metadata.

    Args:
        form: what its metadata must say its ``format`` is.
        unreadable, other: what is said, behind the path, of a file that cannot be read, and of one of another format.

    Raises:
        SettingError: it is one of those.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SettingError(f"{path}: {unreadable} ({error})") from None
    if metadata.get("format") != form:
        raise SettingError(f"{path}: {other}")
    return tensors, metadata
