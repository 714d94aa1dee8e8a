"""Paths given by the user: relative to the folder where the command was started, even if jobs run elsewhere."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, open_dict

from exprune.errors import SettingError
from exprune.files import CannotWriteError

_GIVEN = ("checkpoint", "paths.data_dir", "paths.cache_dir", "exprune.calibration")
_SET_CACHE = "set EXPRUNE_CACHE_DIR (or paths.cache_dir) to a folder that can be"
_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC, errno.EDQUOT}


def resolve_paths(cfg: DictConfig) -> None:
    """With ``hydra.job.chdir=true``, make the relative paths of the configuration absolute; otherwise leave them.

    Raises:
        SettingError: If a path begins with ``~`` and there is no home folder.
    """
    for key in _GIVEN:
        _expanded(key, OmegaConf.select(cfg, key))
    if Path(to_absolute_path(".")).resolve() == Path.cwd():
        return
    with open_dict(cfg):
        for key in _GIVEN:
            if (value := OmegaConf.select(cfg, key)) is not None:
                OmegaConf.update(cfg, key, to_absolute_path(str(Path(value).expanduser())))
        pretrained = OmegaConf.select(cfg, "model.pretrained")  # a name on the hub, a folder, or a GGUF file
        if pretrained is not None and Path(folder := to_absolute_path(str(Path(pretrained).expanduser()))).exists():
            OmegaConf.update(cfg, "model.pretrained", folder)


def _expanded(key: str, value: str | None) -> None:
    try:
        Path(value or "").expanduser()
    except RuntimeError as error:  # there is no home, as in a container, or no such user
        advice = f"{_SET_CACHE} written to" if key in ("paths.cache_dir", "paths.data_dir") else "name it without ~"
        raise SettingError(f"{key}={value}: there is no such home folder; {advice}") from error


@contextlib.contextmanager
def cache_named(cfg: DictConfig) -> Iterator[None]:
    """If a file in the cache cannot be written, say how to choose another folder.

    Raises:
        SettingError: In place of the file's error.
    """
    try:
        yield
    except (OSError, CannotWriteError) as error:
        path, why = _unwritten(error)
        cache = Path(cfg.paths.cache_dir).expanduser().absolute()
        if path is None or not Path(path).absolute().is_relative_to(cache):
            raise
        raise SettingError(f"{path}: cannot be written ({why}); {_SET_CACHE}") from error


def _unwritten(error: OSError | CannotWriteError) -> tuple[Path | None, str]:
    if isinstance(error, CannotWriteError):
        return error.path, error.why
    wanted = error.errno in _WRITING and isinstance(error.filename, str)
    return (Path(error.filename), error.strerror or "") if wanted else (None, "")
