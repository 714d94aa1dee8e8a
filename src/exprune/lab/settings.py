"""Check settings that are wrong for any data and network, before torch and other libraries are imported."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from exprune.errors import SettingError
from exprune.files import check_file
from exprune.lab.additions import check_additions
from exprune.lab.tracking import check_logger
from exprune.lab.training.schedule import check_static

# Settings with a fixed set of words, and settings that are whole numbers of at least 1, or null.
_WORDS = {
    "split": ("test", "valid"),
    "trainer.accelerator": ("cpu", "gpu", "auto"),
    "checkpoint_dtype": ("float32", "float16"),
    "static.name": ("none", "magnitude"),
}
_COUNTS = ("data.limit", "data.epoch_blocks", "bootstrap", "engine.tokens")


def check_settings(cfg: DictConfig) -> None:
    """Raise a SettingError if a setting has an invalid value, or names a file that does not exist."""
    check_additions(cfg)
    for key, words in _WORDS.items():
        value = OmegaConf.select(cfg, key, default=words[0])
        if value not in words:
            raise SettingError(f"{key}={value}: must be {', '.join(words[:-1])} or {words[-1]}")
    for key in _COUNTS:
        _check_count(key, OmegaConf.select(cfg, key))
    trains = "split" not in cfg  # the configuration of train.py, where ``checkpoint`` is the file to write
    if trains or cfg.checkpoint is None:
        _check_count("model.epochs", cfg.model.get("epochs"))
    if trains and cfg.model.get("pretrained") and cfg.static.name == "none":
        raise SettingError(f"model.pretrained={cfg.model.pretrained}: is trained already; use evaluate.py")
    check_logger(cfg)
    check_static(cfg)
    for key in ("exprune.calibration",) if trains else ("checkpoint", "exprune.calibration"):
        if (file := OmegaConf.select(cfg, key)) is not None:
            check_file(Path(file).expanduser())


def _check_count(key: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingError(f"{key}={value}: must be a whole number, at least 1")
