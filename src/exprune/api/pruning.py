"""Running a model pruned, by what is to be kept or saved."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from exprune.api.batches import Call, check_eval
from exprune.api.calibration import Calibration
from exprune.api.change import Metric
from exprune.api.levels import Tried, even_levels, least_that_saves, most_within
from exprune.api.promise import Promise, changes, promised
from exprune.api.tradeoff import Observed, Point, batches_for, default_prices, heuristic_at, observed, price_at
from exprune.core import ExPrune, FlopReport, Site
from exprune.core.errors import SettingError
from exprune.core.settings import real

_STEP = 1 / 64  # of a level: a tenth of the price
_PROMISES_TRIED = 16
_TARGETS = ("kl", "drop", "saved", "price")


class prune:
    """The context in which a model runs pruned: ``with exprune.prune(model, calibration, kl=0.01) as run:``.

    Exactly one target is given. For all but ``price`` a price is found by bisection on every other one of the batches,
    and what it gives on those that are left is reported in :attr:`point`. This counts FLOPs and does not run faster;
    :class:`exprune.fast.faster` does.

    Args:
        model: the one that was calibrated.
        kl: the most that the outputs may change, in the calibration's measure.
        drop: the most that ``metric`` may fall.
        saved: the least share of the FLOPs that is to be saved.
        price: of a FLOP in loss.
        confidence: with this probability, over the draw of the half that is not picked on, the mean change on further
            inputs like them is within ``kl`` or ``drop``. Needs scipy.
        batches: to find the price on; None: those of the calibration.
        metric: as of :func:`~exprune.tradeoff`; needed with ``drop``.
        call, seed: as of :func:`~exprune.tradeoff`.

    Attributes:
        price: that was found.
        point: what it gives on batches that it was not found on; None: it was given.
        promise: see :class:`~exprune.api.promise.Promise`; None without ``confidence``.

    Raises:
        SettingError: no or more than one target, one that no price keeps, another model's calibration.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Calibration,
        *,
        kl: float | None = None,
        drop: float | None = None,
        saved: float | None = None,
        price: float | None = None,
        confidence: float | None = None,
        batches: Any = None,
        metric: Metric | None = None,
        call: Call | None = None,
        seed: int = 0,
    ) -> None:
        check_eval(model)
        wanted = {
            name: value for name, value in zip(_TARGETS, (kl, drop, saved, price), strict=True) if value is not None
        }
        if len(wanted) != 1:
            raise SettingError(f"prune: {' and '.join(wanted) or 'no target'} given; give one of {', '.join(_TARGETS)}")
        ((target, value),) = wanted.items()
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise SettingError(f"{target}={value!r}: a number above 0")
        if (target == "drop") != (metric is not None):
            raise SettingError("prune: drop= goes with metric=, of (output, batch), one number for each example")
        if confidence is not None:
            if target not in ("kl", "drop"):
                raise SettingError(f"confidence={confidence!r}: is of a change; give kl= or drop=, not {target}=")
            real(confidence, "confidence", "a probability above 0 and below 1, such as 0.95", lambda p: 0 < p < 1)
        given = batches_for(model, calibration, batches, call)
        sites = calibration.sites(model, given)
        self.point: Point | None = None
        self.promise: Promise | None = None
        self.price = float(value)
        if target != "price":
            if len(given) < 2:
                raise SettingError("prune: one batch; a price is found on one half of them and tried on the other")
            found_on, tried_on = given.part(slice(0, None, 2)), given.part(slice(1, None, 2))
            at = partial(observed, model, calibration, sites, metric=metric)
            ends = default_prices(calibration, sites, 2)
            if confidence is None:
                self.price = _found(partial(at, found_on), target, float(value), ends)
                last = at(tried_on, self.price)
            else:
                levels = even_levels(lambda level: at(found_on, price_at(level, ends)).flops.saved, _PROMISES_TRIED)
                prices = [price_at(level, ends) for level in levels]
                self.promise, last = promised(partial(at, tried_on), prices, target, float(value), confidence)
                self.price = self.promise.price
            self.point = last.point(seed)
        self._run, self._model = ExPrune(sites, heuristic_at(calibration, self.price)), model
        self._hook: Any = None

    @property
    def flops(self) -> FlopReport:
        """What all calls so far cost, densely and pruned."""
        return self._run.flops

    @property
    def sites(self) -> Sequence[Site]:
        """The model's layers, with the reason of those that run dense."""
        return self._run.sites

    def __enter__(self) -> "prune":
        self._hook = self._model.register_forward_pre_hook(self._note_padding, with_kwargs=True)
        self._run.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hook.remove()
        self._run.__exit__(*exception)

    def _note_padding(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Tell the run which tokens are padding; with a cache a call has the last ones alone."""
        mask = kwargs.get("attention_mask")
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._run.rows = None
        if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.dim() == ids.dim() == 2:
            self._run.rows = mask[:, -ids.shape[1] :].bool()


def _found(at: Callable[[float], Observed], target: str, value: float, ends: Sequence[float]) -> float:
    """The price that saves the most within the target, or the lowest that saves enough.

    Raises:
        SettingError: none keeps it; the line says the nearest.
    """

    @cache
    def tried(level: float) -> Tried:
        seen = at(price_at(level, ends))
        return Tried(level, float(changes(seen, target).double().mean()), seen.flops.saved)

    if target == "saved":
        best = least_that_saves(tried, value, _STEP)
        if best.saved < value:
            raise SettingError(f"saved={value:g}: the highest price tried saves {best.saved:.1%}")
        return price_at(best.level, ends)
    best = most_within(tried, value, _STEP)
    if best.change > value:
        raise SettingError(
            f"{target}={value:g}: no price keeps it; the lowest that was tried gives {best.change:.3g} and saves "
            f"{best.saved:.1%}"
        )
    return price_at(best.level, ends)
