"""Find a setting for a target: the validation split shows that it keeps a drop or saves a share; no guarantee."""

import logging
import math
from functools import cache
from typing import Any

from tqdm import tqdm

from exprune.api.levels import Tried, least_that_saves, most_within
from exprune.core import Heuristic
from exprune.core.errors import SettingError
from exprune.lab.configured import at_level
from exprune.lab.evaluation.curve import Curve, Point
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.knobs import maker, setting_at

log = logging.getLogger(__name__)

_COARSE, _FINE = 1 / 128, 1 / 1024  # steps of the level; for lam, a fifth and a fortieth of a decade

_BEYOND = 1.0  # points by which a drop clearly exceeds its noise


def found(subject: Subject, target: str, value: float) -> tuple[Heuristic | None, dict[str, Any]]:
    """The heuristic that saves most within the allowed change, or changes least at the required saving.

    Returns:
        The heuristic, and what it reached on the validation split.

    Raises:
        SettingError: If the target cannot be reached.
    """
    cfg = subject.cfg
    curve = Curve(subject, subject.inputs("valid"), value + _BEYOND if target == "target_drop" else math.inf)
    make = maker(subject)
    with tqdm(desc=f"{target}={value}", unit=" passes", disable=None, leave=False) as bar:

        @cache
        def point_at(level: float) -> Point:
            bar.update()
            return curve.at(setting_at(cfg, make, at_level(cfg, level)))

        def tried(level: float) -> Tried:
            point = point_at(level)
            if target != "target_kl":
                return Tried(level, point.drop, point.saved)
            if point.divergence is None:
                raise SettingError(
                    f"exprune.target_kl={value}: {subject.cfg.data.name} measures no divergence; only language models "
                    "that predict tokens do"
                )
            return Tried(level, point.divergence, point.saved)

        if target == "target_kl":
            best = most_within(tried, value, _COARSE, cfg.exprune.refine)
            if best.change > value:
                raise SettingError(
                    f"exprune.target_kl={value}: no setting keeps it; the most cautious gives {best.change:.3g}"
                )
        elif target == "target_drop":
            best = most_within(tried, value, _COARSE, cfg.exprune.refine, _BEYOND)
        else:
            best = least_that_saves(tried, value, _FINE)
            if best.saved < value:
                raise SettingError(
                    f"exprune.target_saved={value}: out of reach; the most that can be saved is {best.saved:.3f}"
                )
    knob, point = at_level(cfg, best.level), point_at(best.level)
    reached = {"valid_drop": point.drop, "valid_saved": point.saved}
    reached |= {} if point.divergence is None else {"valid_kl": point.divergence}
    said = f"a KL of {best.change:.4g}" if target == "target_kl" else f"a drop of {point.drop:.3f} points"
    log.info(
        "%s=%s: %s=%.4g, on validation %s, %.2f %% saved",
        target,
        value,
        cfg.exprune.knob,
        knob,
        said,
        100 * point.saved,
    )
    return setting_at(cfg, make, knob)[0], {target: value, **reached}
