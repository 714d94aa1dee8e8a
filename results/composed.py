"""A network of the released ones with its data and sites, for the scripts beside this file."""

from pathlib import Path

from hydra import compose, initialize_config_dir

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported
from exprune.lab.evaluation.subject import Subject, prepare
from exprune.lab.selection.tuning import heuristic_of


def subject_of(*overrides: str) -> Subject:
    """What ``python evaluate.py OVERRIDE...`` measures."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [*overrides, "logger=none", "overrides=[]", "paths.output_dir=."])
    return prepare(cfg, heuristic_of(cfg))
