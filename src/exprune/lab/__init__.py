"""The reproduction around `exprune.core`: data, networks, training, evaluation and reports.

Importing this package imports neither torch nor anything built on it. Those imports take seconds, and ``--help`` or a
message about a wrong setting should not wait for them.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from exprune.lab.torchvision_repair import repair_torchvision

repair_torchvision()  # before anything imports torchvision, as lightning does through torchmetrics


def _default_stages(order: str) -> list[int]:
    from exprune.core.heuristics.calibrated_test import default_stages

    return list(default_stages(order))


def _gain_ratio(heuristic: str) -> Any:
    from exprune import core

    return getattr(core, heuristic).gain_ratio


# Resolvers of the configuration: the folder of the checkout, the default stages of an order, and the default gain_ratio
# of a heuristic.
OmegaConf.register_new_resolver("exprune.root", lambda _: str(Path(__file__).parents[3]), replace=True)
OmegaConf.register_new_resolver("exprune.default_stages", _default_stages, replace=True)
OmegaConf.register_new_resolver("exprune.gain_ratio", _gain_ratio, replace=True)
