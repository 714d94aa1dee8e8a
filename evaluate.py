"""Evaluate a network with and without ExPrune: ``python evaluate.py model=gnn exprune.tau=0.1``. See ``--help``."""

import hydra
from omegaconf import DictConfig

from exprune.lab import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    evaluated = cfg.search.name == "none"
    entry.job("exprune.lab.experiment.evaluate" if evaluated else "exprune.lab.selection.search.search", cfg)


if __name__ == "__main__":
    entry.run(main)
