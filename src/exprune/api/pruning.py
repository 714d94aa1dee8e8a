"""Run a model pruned, given a limit on the change or a required saving."""

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

_STEP = 1 / 64  # of the level; one step changes the price by about a tenth
_PROMISES_TRIED = 16
_TARGETS = ("kl", "drop", "saved", "price")


class prune:
    """Context manager that runs a model pruned.

    Give exactly one of the targets ``kl``, ``drop``, ``saved`` and ``price``. Unless ``price`` is given, a price is
    found by bisection on half of the batches. It is then measured on the other half, and the result is in `point`.

    Outputs and FLOP counts are those of the pruned model, but this is a simulation and does not run faster. For real
    speed-ups on a CPU see `exprune.fast.faster`.

    Args:
        model: The model that was calibrated, in eval mode.
        calibration: The result of `calibrate`.
        kl: The largest mean change of the outputs, in the calibration's measure (nats, or relative squared error).
        drop: The largest fall of ``metric``, in the metric's own unit.
        saved: The smallest share of FLOPs to save, between 0 and 1.
        price: The price of a FLOP in units of loss. A higher price prunes more.
        confidence: A probability such as 0.95. The limit ``kl`` or ``drop`` is then guaranteed for the mean change on
            further inputs from the same distribution, with this probability over the draw of the second half of the
            batches. This requires scipy. None guarantees nothing.
        batches: The batches to find the price on; at least two. None uses the calibration's.
        metric: A function ``metric(output, batch)`` that returns one number per example, higher is better. It is
            required with ``drop``, and only allowed there.
        call: A function ``call(model, batch)`` that runs the model; see `calibrate`.
        seed: Seed of the bootstrap for the intervals in `point`.

    Attributes:
        price: The price in use.
        point: What the price saves and changes on the batches it was not found on; None if ``price`` was given.
        promise: The guarantee; None without ``confidence``.

    Raises:
        SettingError: If not exactly one target is given, if no price reaches the target, or if the calibration
            belongs to another model.

    Example:
        ```python
        with torch.no_grad(), exprune.prune(model, calibration, kl=0.01) as run:
            outputs = model(inputs)
        print(run.flops)  # dense and pruned FLOPs, and the share saved
        ```
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
            raise SettingError(f"{target}={value!r}: must be a number above 0")
        if (target == "drop") != (metric is not None):
            raise SettingError("prune: drop= goes with metric=, a function of (output, batch), one number per example")
        if confidence is not None:
            if target not in ("kl", "drop"):
                raise SettingError(f"confidence={confidence!r}: it is of a change; give kl= or drop=, not {target}=")
            real(confidence, "confidence", "a probability above 0 and below 1, such as 0.95", lambda p: 0 < p < 1)
        given = batches_for(model, calibration, batches, call)
        sites = calibration.sites(model, given)
        self.point: Point | None = None
        self.promise: Promise | None = None
        self.price = float(value)
        if target != "price":
            if len(given) < 2:
                raise SettingError("prune: one batch; a price is found on half of the batches and tried on the other")
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
        """FLOPs of all calls so far, dense and pruned."""
        return self._run.flops

    @property
    def sites(self) -> Sequence[Site]:
        """The model's layers; a layer that runs dense carries the reason."""
        return self._run.sites

    def __enter__(self) -> "prune":
        self._hook = self._model.register_forward_pre_hook(self._note_padding, with_kwargs=True)
        self._run.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hook.remove()
        self._run.__exit__(*exception)

    def _note_padding(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Tell the run which tokens are padding. A call with a key-value cache passes only the last tokens."""
        mask = kwargs.get("attention_mask")
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._run.rows = None
        if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.dim() == ids.dim() == 2:
            self._run.rows = mask[:, -ids.shape[1] :].bool()


def _found(at: Callable[[float], Observed], target: str, value: float, ends: Sequence[float]) -> float:
    """The price that saves most within the limit, or the lowest price that saves enough.

    Raises:
        SettingError: If there is no such price; the message names the closest one.
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
            f"{target}={value:g}: no price keeps it; the lowest price tried gives {best.change:.3g} and saves "
            f"{best.saved:.1%}"
        )
    return price_at(best.level, ends)
