"""Save and load the statistics of sites; the files contain tensors and no code."""

import ctypes
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exprune.core.accounting.plan import BY_INPUT
from exprune.core.calibration.lines import SiteStatistics
from exprune.core.errors import SettingError
from exprune.files import load_tensors, save_tensors

# The attributes of SiteStatistics that are stored.
MEASURED = tuple("slope offset sd order gradient rest magnitudes gate outputs factor weighed".split())
_FORMAT = "exprune calibration 2"
_LISTED = "listed"  # marks an order that is stored as a tensor


def save_statistics(path: Path, statistics: Mapping[str, SiteStatistics], about: Mapping[str, Any]) -> None:
    """Save the statistics of sites by name. ``about`` says what they belong to, and is stored as JSON."""
    tensors = {
        f"{name}/{what}": value
        for name, of in statistics.items()
        for what in MEASURED
        if isinstance(value := getattr(of, what), Tensor)
    }
    sites = {
        name: {"stages": of.stages, "order": _LISTED if isinstance(of.order, Tensor) else of.order}
        for name, of in statistics.items()
    }
    save_tensors(path, tensors, {"format": _FORMAT, "about": json.dumps(about), "sites": json.dumps(sites)})


def load_statistics(path: Path) -> tuple[dict[str, SiteStatistics], dict[str, Any]]:
    """Load statistics, and the description of what they belong to, that `save_statistics` wrote.

    Raises:
        SettingError: If the file does not exist, or holds no calibration of this version.
    """
    tensors, metadata = load_tensors(path, _FORMAT)
    try:
        sites, about = (json.loads(metadata[key]) for key in ("sites", "about"))
        return {name: _of(name, of, tensors) for name, of in sites.items()}, dict(about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path}: no whole calibration ({type(error).__name__}: {error})") from error


def _of(name: str, of: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SiteStatistics:
    values: dict[str, Any] = {what: tensors.get(f"{name}/{what}") for what in MEASURED}
    needed = {"slope", "offset", "sd", "gradient"}
    needed |= {BY_INPUT: {"rest", "magnitudes"}, _LISTED: {"order"}}.get(of["order"], set())
    if missing := sorted(what for what in needed if values[what] is None):
        raise ValueError(f"no {missing[0]} of {name}")
    if of["order"] != _LISTED:
        values["order"] = of["order"]
    return SiteStatistics(tuple(of["stages"]), **values)


def network_digest(network: nn.Module) -> str:
    """A fingerprint of a network's weights and buffers: their names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(raw(tensor))
    return digest.hexdigest()[:32]


def raw(tensor: Tensor) -> bytes:
    """A tensor's bytes, computed without numpy, which torch does not require."""
    plain = tensor.detach().cpu().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.nbytes else b""
