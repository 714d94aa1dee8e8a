"""The reproduction around :mod:`exprune.core`: data, networks, training, evaluation and reports.

Importing it imports neither torch nor what stands on it: those take seconds, and ``--help`` or a wrong setting needs
none of them.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from exprune.lab.torchvision_repair import repair_torchvision

repair_torchvision()  # before anything imports it: lightning does, by way of torchmetrics


def _default_stages(order: str) -> list[int]:
    from exprune.core.heuristics.calibrated_test import default_stages

    return list(default_stages(order))


def _gain_ratio(heuristic: str) -> Any:
    from exprune import core

    return getattr(core, heuristic).gain_ratio


# What the configuration asks for beside plain values: the folder of the checkout, the stages that suit an order,
# and a heuristic's own gain_ratio.
OmegaConf.register_new_resolver("exprune.root", lambda _: str(Path(__file__).parents[3]), replace=True)
OmegaConf.register_new_resolver("exprune.default_stages", _default_stages, replace=True)
OmegaConf.register_new_resolver("exprune.gain_ratio", _gain_ratio, replace=True)
