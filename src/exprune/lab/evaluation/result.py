"""The result of one evaluation, as stored in ``result.json``."""

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
    """The primary metric.

    Attributes:
        name: The name of the metric.
        dense: Its value without ExPrune.
        pruned: Its value with ExPrune.
        drop: ``dense - pruned`` in points (hundredths), positive where pruning is worse.
        interval: The 95 % interval of the drop.
        dense_interval: The 95 % interval of ``dense``.
        pruned_interval: The 95 % interval of ``pruned``.
    """

    name: str
    dense: float
    pruned: float
    drop: float
    interval: tuple[float, float]
    dense_interval: tuple[float, float]
    pruned_interval: tuple[float, float]


@dataclass(frozen=True)
class FlopsPerInput:
    """FLOPs per input.

    Attributes:
        unit: The name of an input, such as ``image``.
        unpruned: FLOPs of the network before static pruning.
        dense: FLOPs without ExPrune.
        pruned: FLOPs with ExPrune.
        saved: The saving as a share of ``dense``.
        paper_scope: The same in the scope of the published figure, without layers that feed no activation
            (``scope=all``), and without what zeros save in other layers.
        zero_skipping: What skipping products with exact zeros in a language model's fc2 would save in addition, without
            (``dense``) and with ExPrune (``pruned``). No other value here contains it. None if these layers may be
            pruned themselves (``scope=all``).
        without_zero_terms: The same pruned network compared with a dense one that skips the sites' terms that are
            exactly zero. They are counted with ``order=input`` only, where the pruned network skips them too.
        uncounted: The number of calls of operators without a FLOP formula, whose costs are in none of the values.
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
    """Everything that ``evaluate.py`` reports.

    Attributes that are not explained here repeat settings of the run.

    Attributes:
        inputs: The number of inputs.
        sparsity: The share of weights removed by static pruning.
        target: The target that the heuristic's setting was found for, and what it reached on validation; or None.
        metric: The primary metric.
        flops: FLOPs per input.
        sites: One row per layer.
        seconds: The time of both passes.
        versions: Versions of the packages in use.
        command: The command line.
        head: The effect of dropping logits on the last layer, and what that saves in addition to ``flops``; None if all
            logits were computed. It is included in the metric.
        engine: Results of a part of the inputs run through the kernels of `exprune.fast`; None if not requested.
        metrics: Secondary metrics.
        finite_population: True if StatsTest treats its terms as a sample of a finite population.
        divergence: KL(dense || pruned) of a language model's predictions in nats, over its tokens: ``mean`` with its
            ``error`` over texts (None if there is one text), ``median``, ``most`` (99th percentile), ``largest``, and
            ``same``, the share of tokens whose most likely token is unchanged. None if nothing was pruned, or if logits
            were dropped.
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
    finite_population: bool | None = None
    divergence: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        write_whole(path, lambda partial: partial.write_text(text))


def check_defined(result: Result) -> None:
    """Raise a SettingError that names a value of the result that is NaN or infinite, which JSON cannot represent."""
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
    """Read a ``result.json``.

    Raises:
        SettingError: If the file is missing, or not a result.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not valid JSON")

    try:
        result = json.loads(path.read_text(), parse_constant=refuse)
        result["metric"]["dense"], result["flops"]["saved"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path}: not a result.json of evaluate.py ({error})") from error
    return result


def flops_per_input(unit: str, linear: FlopReport, dense_pass: Pass, pruned_pass: Pass) -> FlopsPerInput:
    """Add the paper's element-wise terms, which pruning does not change, and divide by the number of inputs.

    If the network does not count those terms, they are listed in ``uncounted``. A task that counts its matrix products
    itself (``model_flops``: without padding, with attention) replaces the count of FlopCounterMode.
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

    others = [count for count in linear.sites if not count.site.before_activation]  # only with scope=all
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
    """One row per layer: the layer, what static pruning left of it, and what happened in the pruned pass."""
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
