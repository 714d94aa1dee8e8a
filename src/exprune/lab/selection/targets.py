"""The knob for a target: what the validation split says keeps a drop, or saves a share, and no promise beyond it."""

import logging
import math
from functools import cache
from typing import Any

from tqdm import tqdm

from exprune.api.levels import Tried, least_that_saves, most_within
from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.lab.configured import at_level
from exprune.lab.evaluation.curve import Curve
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.knobs import maker, setting_at

log = logging.getLogger(__name__)

_COARSE, _FINE = 1 / 128, 1 / 1024  # steps of a knob's level; of lam a fifth and a fortieth of a decade

_BEYOND = 1.0  # points that stand out of the noise of a drop


def found(subject: Subject, target: str, value: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic with the most that is within the drop, or the least that saves as much; and what it reached.

    Raises:
        SettingError: the target cannot be reached.
    """
    cfg = subject.cfg
    curve = Curve(subject, subject.inputs("valid"), value + _BEYOND if target == "target_drop" else math.inf)
    make = maker(subject)
    with tqdm(desc=f"{target}={value}", unit=" passes", disable=None, leave=False) as bar:

        @cache
        def tried(level: float) -> Tried:
            bar.update()
            point = curve.at(setting_at(cfg, make, at_level(cfg, level)))
            return Tried(level, point.drop, point.saved)

        if target == "target_drop":
            best = most_within(tried, value, _COARSE, cfg.exprune.refine, _BEYOND)
        else:
            best = least_that_saves(tried, value, _FINE)
            if best.saved < value:
                raise SettingError(
                    f"exprune.target_saved={value}: out of reach; the most that can be saved is {best.saved:.3f}"
                )
    knob = at_level(cfg, best.level)
    found = f"on validation a drop of {best.change:.3f} points, {100 * best.saved:.2f} % saved"
    log.info("%s=%s: %s=%.4g, %s", target, value, cfg.exprune.knob, knob, found)
    return setting_at(cfg, make, knob)[0], {target: value, "valid_drop": best.change, "valid_saved": best.saved}
