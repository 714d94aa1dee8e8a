"""Evaluate a network with and without ExPrune: ``python evaluate.py model=gnn exprune.tau=0.1``. See ``--help``."""

import hydra
from omegaconf import DictConfig

from exprune.lab import entry
from exprune.lab.experiment import evaluate
from exprune.lab.selection.search import search


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    entry.job(evaluate if cfg.search.name == "none" else search, cfg)


if __name__ == "__main__":
    entry.run(main)
