"""A knob with a promise: how far the metric drops on inputs that nobody has seen (docs/method.md, section 11)."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.core.settings import real
from exprune.lab.evaluation.measure import pass_and_saved
from exprune.lab.evaluation.passes import Pass
from exprune.lab.evaluation.report import promise_line
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.grid import grid_of
from exprune.lab.selection.knobs import file_of, maker, run_at
from exprune.lab.selection.sequence import bound, how_many_pass, out_of_reach
from exprune.lab.tasks.paired_tests import PairedTest
from exprune.lab.tasks.task import Task

log = logging.getLogger(__name__)

_known: dict[Path, tuple[PairedTest, float]] = {}  # by setting: the jobs of a sweep over targets share them


def check_promise(cfg: DictConfig) -> None:
    """Whether the settings ask for a promise that can be: a probability, of a drop.

    Raises:
        SettingError: they do not.
    """
    settings, wanted = cfg.exprune, "a probability above 0 and below 1, such as 0.95; or null"
    confidence = real(settings.confidence, "exprune.confidence", wanted, lambda p: 0 < p < 1)
    if settings.target_drop is None or settings.get("target_saved") is not None:
        raise SettingError(f"exprune.confidence={confidence}: is of a drop; target_drop=1 and target_saved=null")
    if settings.refine:
        raise SettingError(f"exprune.refine={settings.refine}: exprune.grid says what a promise tries; refine=0")
    check_target(cfg, "target_drop")


def check_target(cfg: DictConfig, target: str) -> None:
    """Raises SettingError where ``exprune.target_drop`` or ``target_saved`` is no number, or below 0."""
    real(cfg.exprune[target], f"exprune.{target}", "a number, at least 0", lambda x: 0 <= x < math.inf)


def promised(subject: Subject, drop: float, confidence: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic with the boldest knob that is promised to drop by at most ``drop`` points; and the promise.

    Over the draw of the validation inputs, the probability is at most 1 - ``confidence`` that the knob drops by more
    on the population that they were drawn from.

    Raises:
        SettingError: the validation inputs are too few for any setting, or the metric has no such test.
    """
    knob, error, dense, make = subject.cfg.exprune.knob, 1 - confidence, subject.dense("valid"), maker(subject)
    settings, reached = grid_of(subject, make), []

    def evidence() -> Iterator[PairedTest]:
        for setting in tqdm(settings, desc=f"target_drop={drop:g}", disable=None, leave=False):
            run = run_at(subject, make, setting)
            file = file_of(subject, run)
            if file not in _known:
                pruned, saved = pass_and_saved(subject, run, subject.loader("valid"), dense)
                _known[file] = drop_test(subject.task, dense, pruned), saved
            test, saved = _known[file]
            reached.append({"valid_drop": 100 * test.drop, "valid_saved": saved})
            yield test

    passed, test = how_many_pass(evidence(), drop, error)
    count, unit = len(dense.targets), subject.task.unit
    if not passed:
        raise out_of_reach(test, drop, error, count, unit, f"{knob}={settings[0]:.4g}")
    setting = settings[passed - 1]
    promise = {
        "target_drop": drop,
        "confidence": confidence,
        "inputs": count,
        "bound": bound(test, error),
        "test": test.kind,
        "tried": len(reached),
        **reached[passed - 1],
    }
    log.info("%s=%.4g of %d settings tried: %s", knob, setting, len(reached), promise_line(promise, unit))
    return make(**{knob: setting}), promise


def drop_test(task: Task, dense: Pass, pruned: Pass) -> PairedTest:
    """The test of a task's drop on a pass.

    Raises:
        SettingError: its metric has none.
    """
    if not hasattr(task, "drop_test"):
        raise SettingError(f"exprune.confidence: {task.metric_name} has no paired test (Task.drop_test); null")
    return task.drop_test(dense.predictions, pruned.predictions, dense.targets, dense.columns.get("group"))
