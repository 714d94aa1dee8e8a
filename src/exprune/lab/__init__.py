"""The reproduction around :mod:`exprune.core`: data, networks, training, evaluation and reports."""

from exprune.lab.torchvision_repair import repair_torchvision

# Before anything here imports lightning: it imports torchmetrics, which imports torchvision.
repair_torchvision()

from pathlib import Path  # noqa: E402

from omegaconf import OmegaConf  # noqa: E402

from exprune import core  # noqa: E402
from exprune.core.heuristics.calibrated_test import default_stages  # noqa: E402

# What the configuration asks for beside plain values: the folder of the checkout, the stages that suit an order,
# and a heuristic's own gain_ratio.
OmegaConf.register_new_resolver("exprune.root", lambda _: str(Path(__file__).parents[3]), replace=True)
OmegaConf.register_new_resolver("exprune.default_stages", lambda order: list(default_stages(order)), replace=True)
OmegaConf.register_new_resolver("exprune.gain_ratio", lambda name: getattr(core, name).gain_ratio, replace=True)
