"""Choose a setting with a guaranteed drop of the metric on unseen inputs (docs/method.md, section 11)."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from exprune.api.levels import even_levels
from exprune.api.paired_tests import PairedTest
from exprune.api.sequence import bound, how_many_pass, out_of_reach
from exprune.core import Heuristic
from exprune.lab.configured import at_level
from exprune.lab.evaluation.curve import Curve, Point, Setting
from exprune.lab.evaluation.report import promise_line
from exprune.lab.evaluation.subject import Inputs, Subject, plain
from exprune.lab.selection.knobs import Maker, maker, setting_at

log = logging.getLogger(__name__)

_INPUTS = 64  # inputs of the training split, enough to estimate what a setting saves


def promised(subject: Subject, drop: float, confidence: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic with the boldest setting whose drop is guaranteed to be at most ``drop`` points; and the guarantee.

    The probability, over the draw of the validation inputs, that the setting drops by more on their population is at
    most 1 - ``confidence``.

    Raises:
        SettingError: If there are too few validation inputs for any setting, or if the metric has no such test.
    """
    cfg, name, error, unit = subject.cfg, subject.cfg.exprune.knob, 1 - confidence, subject.task.unit
    curve, make = Curve(subject, subject.inputs("valid")), maker(subject)
    grid = grid_of(subject, make)
    bar = tqdm(grid, desc=f"target_drop={drop:g}", disable=None, leave=False)
    settings = (setting_at(cfg, make, knob) for knob in bar)
    passed, test, points = how_many_promised(curve, settings, drop, error, f"{name}={grid[0]:.4g}")
    knob = grid[passed - 1]
    promise = {
        "target_drop": drop,
        "confidence": confidence,
        "inputs": len(curve.dense.targets),
        "bound": 100 * bound(test, error),
        "test": test.kind,
        "tried": len(points),
        "valid_drop": 100 * test.drop,
        "valid_saved": points[passed - 1].saved,
    }
    log.info("%s=%.4g of %d settings tried: %s", name, knob, len(points), promise_line(promise, unit))
    return setting_at(cfg, make, knob)[0], promise


def how_many_promised(
    curve: Curve, settings: Iterable[Setting], drop: float, error: float, first: str
) -> tuple[int, PairedTest, list[Point]]:
    """The number of settings, ordered from cautious to bold, that the curve's inputs guarantee.

    Returns:
        The number, the test of the last setting that passed, and the points of all settings that were tested.

    Raises:
        SettingError: If not even the first setting passes; ``first`` names it.
    """
    points = []

    def evidence() -> Iterator[PairedTest]:
        for setting in settings:
            points.append(curve.at(setting))
            yield curve.test(points[-1])

    passed, test = how_many_pass(evidence(), drop / 100, error)
    if not passed:
        count, unit = len(curve.dense.targets), curve.subject.task.unit
        raise out_of_reach(test, drop / 100, error, count, unit, first, f"exprune.target_drop={drop:g}", points=True)
    return passed, test, points


def grid_of(subject: Subject, make: Maker) -> list[float]:
    """The settings to test, from cautious to bold: those given, or so many that their savings are evenly spaced.

    What they save is measured on a few inputs of the training split, so the choice does not depend on validation.
    """
    cfg = subject.cfg
    grid = plain(cfg.exprune.grid)
    if isinstance(grid, list):
        return sorted(set(grid))
    generator = torch.Generator().manual_seed(cfg.seed)
    curve = Curve(subject, Inputs(list(subject.data.calibration_dataloader(_INPUTS, generator))))
    with tqdm(desc="grid", unit=" passes", disable=None, leave=False) as bar:

        def saved(level: float) -> float:
            bar.update()
            return curve.at(setting_at(cfg, make, at_level(cfg, level))).saved

        return [at_level(cfg, level) for level in even_levels(saved, grid)]
