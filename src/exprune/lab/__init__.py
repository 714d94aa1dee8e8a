"""The reproduction around :mod:`exprune.core`: data, networks, training, evaluation and reports."""

from exprune.lab.torchvision_repair import repair_torchvision

# Before anything here imports lightning: it imports torchmetrics, which imports torchvision.
repair_torchvision()

from pathlib import Path  # noqa: E402

from omegaconf import OmegaConf  # noqa: E402

OmegaConf.register_new_resolver("exprune.root", lambda _: str(Path(__file__).parents[3]), replace=True)
