"""Train a network: ``python train.py model=gnn``. See ``--help`` for the axes of the configuration."""

import hydra
from omegaconf import DictConfig

from exprune.lab import entry


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    entry.job("exprune.lab.experiment.train", cfg)


if __name__ == "__main__":
    entry.run(main)
