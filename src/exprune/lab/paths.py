"""Paths that a user gives: relative to where the command was started, also where its jobs run elsewhere."""

from pathlib import Path

from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict

_GIVEN = ("checkpoint", "paths.data_dir", "paths.cache_dir", "exprune.calibration")


def resolve_paths(cfg: DictConfig) -> None:
    """With ``hydra.job.chdir=true`` make the configuration's relative paths absolute; else leave them as they are."""
    if Path(to_absolute_path(".")).resolve() == Path.cwd():
        return
    with open_dict(cfg):
        for key in _GIVEN:
            if (value := OmegaConf.select(cfg, key)) is not None:
                OmegaConf.update(cfg, key, to_absolute_path(str(Path(value).expanduser())))
        pretrained = OmegaConf.select(cfg, "model.pretrained")  # a name on the hub, or a folder
        if pretrained is not None and Path(folder := to_absolute_path(str(Path(pretrained).expanduser()))).is_dir():
            OmegaConf.update(cfg, "model.pretrained", folder)
