"""The settings of a knob that a promise tries, decided before the data are seen that it is made on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from exprune.core.errors import SettingError
from exprune.core.settings import real, whole
from exprune.lab.evaluation.measure import pass_and_saved
from exprune.lab.evaluation.passes import run_pass
from exprune.lab.evaluation.subject import Subject, plain
from exprune.lab.selection.knobs import Maker, at_level, file_of, heuristic_of, run_at

_INPUTS = 64  # of the training split, enough to see what a setting saves
_FINEST = 1 / 512  # of a knob's level

_known: dict[tuple[Path, int, int], list[float]] = {}  # the jobs of a sweep over targets share them


def check_grid(cfg: DictConfig) -> None:
    """Whether ``exprune.grid`` is a number of settings, or two or more settings that the heuristic takes.

    Raises:
        SettingError: it is not.
    """
    grid = plain(cfg.exprune.grid)
    if not isinstance(grid, list):
        whole(grid, "exprune.grid", "the number of settings to try, at least 2, or a list of them", lambda n: n >= 2)
        return
    for setting in grid:
        real(setting, "exprune.grid", "a number of settings to try, or a list of numbers", lambda _: True)
        heuristic_of(cfg, **{cfg.exprune.knob: setting})
    if len(set(grid)) < 2:
        raise SettingError(f"exprune.grid={grid}: at least 2 different settings, or how many to try")


def grid_of(subject: Subject, make: Maker) -> list[float]:
    """From cautious to bold: the settings as given, or so many between which what is saved rises evenly.

    What they save is measured on a few inputs of the training split, so that the validation split has no say in it.
    """
    cfg = subject.cfg
    grid = plain(cfg.exprune.grid)
    if isinstance(grid, list):
        return sorted(set(grid))
    key = file_of(subject, run_at(subject, make, at_level(cfg, 0.0))), grid, cfg.seed
    if key not in _known:
        _known[key] = _laid_out(subject, make, grid)
    return _known[key]


def _laid_out(subject: Subject, make: Maker, count: int) -> list[float]:
    cfg = subject.cfg
    generator = torch.Generator().manual_seed(cfg.seed)
    batches = list(subject.data.calibration_dataloader(_INPUTS, generator))
    dense = run_pass(subject.trainer, subject.task, batches, None)
    with tqdm(desc="grid", unit=" passes", disable=None, leave=False) as bar:

        def saved(level: float) -> float:
            bar.update()
            return pass_and_saved(subject, run_at(subject, make, at_level(cfg, level)), batches, dense)[1]

        return [at_level(cfg, level) for level in even_levels(saved, count)]


def even_levels(saved: Callable[[float], float], count: int) -> list[float]:
    """At most ``count`` levels in (0, 1], increasing up to 1, between which ``saved`` rises by equal parts."""
    known = {level: saved(level) for level in (0.0, 1.0)}
    step = (known[1.0] - known[0.0]) / count
    todo = [(0.0, 1.0)]
    while todo:
        low, high = todo.pop()
        if abs(known[high] - known[low]) > step and high - low > _FINEST:
            middle = (low + high) / 2
            known[middle] = saved(middle)
            todo += [(low, middle), (middle, high)]
    levels = sorted(known)
    rising = np.maximum.accumulate([known[level] for level in levels])
    wanted = np.linspace(known[0.0], rising[-1], count + 1)[1:]
    found = np.interp(wanted, rising, levels)
    found[-1] = 1.0
    return [high for low, high in itertools.pairwise([0.0, *map(float, found)]) if high > low]
