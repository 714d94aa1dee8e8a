"""The outcome of one evaluation, as it stands in ``result.json``."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exprune.core import ExPrune, FlopReport, SiteFlops
from exprune.core.errors import SettingError
from exprune.files import write_whole
from exprune.lab.evaluation.passes import Pass


@dataclass(frozen=True)
class Metric:
    """The primary metric. ``drop`` is in points (hundredths), positive where pruning is worse; intervals are 95 %."""

    name: str
    dense: float
    pruned: float
    drop: float
    interval: tuple[float, float]
    dense_interval: tuple[float, float]
    pruned_interval: tuple[float, float]


@dataclass(frozen=True)
class FlopsPerInput:
    """FLOPs per input, named in ``unit``.

    ``unpruned`` is the network before static pruning, ``dense`` without ExPrune, ``pruned`` with it; ``saved``
    is a fraction of ``dense``. ``paper_scope`` holds the same in the scope of the published figure, of
    which layers that feed no activation (``scope=all``) are no part, nor what zeros spare in other layers.
    ``zero_skipping`` is what leaving out the products with zeros in a language model's fc2 would save beside that,
    without (``dense``) and with ExPrune (``pruned``): exact, and part of no other figure here; None where such a layer
    may be a site itself (``scope=all``).
    ``without_zero_terms`` has beside the same pruned network a dense one that skips the sites' terms that are exactly
    zero, where they are counted (``order=input``, in which the pruned one skips them); ``dense`` is charged for them.
    ``uncounted`` names operators that nobody has a formula for, with the number of their calls: none of the figures
    holds what they cost.
    """

    unit: str
    unpruned: float
    dense: float
    pruned: float
    saved: float
    paper_scope: dict[str, float]
    zero_skipping: dict[str, float] | None = None
    without_zero_terms: dict[str, float] | None = None
    uncounted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Everything ``evaluate.py`` reports.

    ``head`` is what dropping logits did to the last layer and what that saves beside ``flops``, whose figures it is
    no part of; None where all were computed. It does count in the metric.
    ``engine`` is what a part of the inputs became through the kernels of :mod:`exprune.fast`, beside the passes that
    all else is of; None where they were not asked for.
    ``divergence`` is KL(dense || pruned) of a language model's predictions in nats, over its tokens: ``mean`` with its
    ``error`` over texts (None: there is one), ``median``, ``most`` (99 %), ``largest``, and ``same``, the share of
    tokens with the same most likely one; None where nothing was pruned, or logits were dropped.
    """

    model: str
    data: str
    split: str
    inputs: int
    static: str
    sparsity: float
    seed: int
    checkpoint: str
    heuristic: str
    tau: Any
    n: int | None
    stages: list[int] | None
    lam: float | None
    order: str | None
    predict: bool | None
    scope: str | None
    target: dict[str, Any] | None
    gain_ratio: Any
    site_selection: list[str] | str | None
    metric: Metric
    flops: FlopsPerInput
    sites: list[dict[str, Any]]
    seconds: dict[str, float | None]
    versions: dict[str, str]
    command: str
    head: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    divergence: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        write_whole(path, lambda partial: partial.write_text(text))


def check_defined(result: Result) -> None:
    """Raises SettingError, which names it, where a figure of the result is NaN or infinite: JSON has no such number."""
    for name, value in _numbers("", asdict(result)):
        if not math.isfinite(value):
            raise SettingError(f"{name} of {result.model} on {result.data} is {value}: undefined, so no result")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(f"{name}.{key}" if name else str(key), part)


def read_result(path: Path) -> dict[str, Any]:
    """The contents of a ``result.json``.

    Raises:
        SettingError: it is missing or no result.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        result = json.loads(path.read_text(), parse_constant=refuse)
        result["metric"]["dense"], result["flops"]["saved"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path}: not a result.json of evaluate.py ({error})") from error
    return result


def flops_per_input(unit: str, linear: FlopReport, dense_pass: Pass, pruned_pass: Pass) -> FlopsPerInput:
    """Add the paper's element-wise terms, which pruning does not change, and divide by the inputs.

    Where the network says nothing of those terms, they are named in ``uncounted``.
    A task that counts its matrix products itself (``model_flops``: no padding, attention) replaces FlopCounterMode's.
    """
    totals, inputs = dense_pass.totals, len(dense_pass.targets)
    linear = replace(linear, unpruned=totals.get("model_flops", linear.unpruned))
    uncounted, elementwise = dict(linear.uncounted), 0
    if calls := totals.get("elementwise_unknown"):
        uncounted["element-wise operations"] = calls
    else:
        elementwise = totals["elementwise_flops"]
    unpruned, dense, pruned = (number + elementwise for number in (linear.unpruned, linear.dense, linear.pruned))

    def both(dense: int, pruned: int) -> dict[str, float]:
        return {"dense": dense / inputs, "pruned": pruned / inputs, "saved": 1 - pruned / dense}

    others = [count for count in linear.sites if not count.site.before_activation]  # of scope=all
    skipping = None
    if "zero_skipping" in totals and not others:
        skipping = {
            side: one.totals["zero_skipping"] / inputs for side, one in (("dense", dense_pass), ("pruned", pruned_pass))
        }
    outside = totals.get("outside_paper_scope", 0)
    saved_outside = sum(count.dense_flops - count.pruned_flops for count in others)
    saved_outside += sum(count.spared for count in linear.sites)
    nonzero = linear.dense_without_zero_terms
    return FlopsPerInput(
        unit,
        unpruned=unpruned / inputs,
        **both(dense, pruned),
        paper_scope=both(dense - outside, pruned - outside + saved_outside),
        zero_skipping=skipping,
        without_zero_terms=None if nonzero is None else both(nonzero + elementwise, linear.pruned + elementwise),
        uncounted=uncounted,
    )


def site_rows(run: ExPrune) -> list[dict[str, Any]]:
    """One row per layer: what it is, what static pruning left of it, and what happened there in the pruned pass."""
    counts: dict[str, SiteFlops] = {count.site.name: count for count in run.flops.sites}
    rows = []
    for site in run.sites:
        weights = None if site.weight is None else site.weight.numel()
        left = weights if (mask := site.mask) is None else int(mask.count_nonzero())
        row: dict[str, Any] = {
            **{what: getattr(site, what) for what in ("name", "kind", "relu")},
            "activation": None if site.activation is None else site.activation.name,
            **{what: getattr(site, what) for what in ("gated", "residual", "eligible", "reason", "terms")},
            **{"weights": weights, "weights_left": left, "stages": []},
            **dict.fromkeys(("tau", "outputs", "pruned", "negative", "wrong", "flops")),
        }
        if (count := counts.get(site.name)) is not None:
            row |= {
                "stages": [{"n": n, "pruned": k} for n, k in zip(count.stages, count.stopped, strict=True)],
                "tau": run.taus[site.name],
                "outputs": count.outputs,
                "pruned": count.pruned,
                "negative": int(count.negative),
                "wrong": int(count.wrong),
                "flops": {"dense": count.dense_flops, "pruned": count.pruned_flops, "spared": count.spared},
            }
        rows.append(row)
    return rows
