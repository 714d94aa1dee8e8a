"""The reproduction around :mod:`exprune.core`: data, networks, training, evaluation and reports."""

from exprune.lab.torchvision_repair import repair_torchvision

# Before anything here imports lightning: it imports torchmetrics, which imports torchvision.
repair_torchvision()

from pathlib import Path  # noqa: E402

from omegaconf import OmegaConf  # noqa: E402

from exprune.core.accounting.plan import BY_INPUT  # noqa: E402
from exprune.core.heuristics.calibrated_test import STAGES, STAGES_BY_INPUT  # noqa: E402

# What the configuration asks for beside plain values: the folder of the checkout, the stages that suit an order.
OmegaConf.register_new_resolver("exprune.root", lambda _: str(Path(__file__).parents[3]), replace=True)
OmegaConf.register_new_resolver(
    "exprune.default_stages", lambda order: list(STAGES_BY_INPUT if order == BY_INPUT else STAGES), replace=True
)
