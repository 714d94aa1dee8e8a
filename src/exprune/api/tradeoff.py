"""Measure what a model saves at several prices, and how its outputs change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exprune.api.batches import Batches, Call, data_rows
from exprune.api.calibration import Calibration
from exprune.api.change import Change, Metric, apart, inputs_of, output_of, summarised
from exprune.api.progress import bar
from exprune.core import ExPrune, FlopReport, Optimal, Site
from exprune.core.errors import SettingError

PRICES = 6
_LOWEST, _HIGHEST = 1e-4, 0.3  # multiples of the price at which pruning everything would pay


@dataclass(frozen=True)
class Point:
    """What one price saves, and how it changes the outputs.

    Attributes:
        price: The price of a FLOP in units of loss.
        flops: FLOPs of all batches, dense and pruned.
        change: The change of the outputs.
        metric: The fall of the user's metric; None if no metric was given.
    """

    price: float
    flops: FlopReport
    change: Change
    metric: Change | None = None

    def __str__(self) -> str:
        metric = "" if self.metric is None else f"; {self.metric}"
        return f"{self.price:9.2e} {self.flops.saved:7.1%}  {self.change}{metric}"


@dataclass(frozen=True)
class Tradeoff:
    """The result of `tradeoff`: a curve of saved FLOPs against the change of the outputs. It prints as a table.

    Attributes:
        points: The points of the curve, by ascending price.
    """

    points: tuple[Point, ...]

    def __str__(self) -> str:
        lines = [f"{'price':>9} {'saved':>7}  change of the outputs"]
        return "\n".join([*lines, *map(str, self.points)])

    def to_pandas(self) -> Any:
        """The points as a pandas DataFrame, one row per price. Requires pandas.

        Returns:
            A DataFrame with the columns ``price``, ``saved`` (a share) and the attributes of `Change`. The columns of a
                user's metric begin with ``metric_``.
        """
        import pandas

        rows = []
        for point in self.points:
            row: dict[str, Any] = {"price": point.price, "saved": point.flops.saved, **vars(point.change)}
            if point.metric is not None:
                row |= {f"metric_{name}": value for name, value in vars(point.metric).items()}
            rows.append(row)
        return pandas.DataFrame(rows)

    def plot(self, path: Path | str | None = None) -> Any:
        """Plot the saved FLOPs against the change of the outputs, with its 95 % interval. Requires matplotlib.

        Args:
            path: Where to save the figure; None saves nothing.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        saved = [100 * point.flops.saved for point in self.points]
        changes = [point.metric or point.change for point in self.points]
        axes.plot(saved, [change.mean for change in changes], marker="o")
        axes.fill_between(saved, [change.low for change in changes], [change.high for change in changes], alpha=0.2)
        axes.set_xlabel("FLOPs saved (%)")
        axes.set_ylabel(
            {"kl": "KL divergence from the dense model (nats)", "relative": "relative squared error"}.get(
                changes[0].measure, "fall of the metric"
            )
        )
        if changes[0].measure != "metric":
            axes.set_yscale("log")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def tradeoff(
    model: nn.Module,
    calibration: Calibration,
    batches: Any = None,
    *,
    prices: Sequence[float] | None = None,
    call: Call | None = None,
    metric: Metric | None = None,
    seed: int = 0,
) -> Tradeoff:
    """Measure what several prices save, and how far they change the outputs from those of the dense model.

    Args:
        model: The model that was calibrated, in eval mode.
        calibration: The result of `calibrate`.
        batches: The batches to measure on, which should not be those of the calibration. None uses the calibration's
            batches, which is optimistic.
        prices: Prices of a FLOP in units of loss. None uses six prices, from one that prunes almost nothing to one
            that prunes a lot.
        call: A function ``call(model, batch)`` that runs the model; see `calibrate`.
        metric: A function ``metric(output, batch)`` that returns one number per example, higher is better. Its fall
            is reported beside the change of the outputs.
        seed: Seed of the bootstrap for the intervals.

    Returns:
        The curve, with one point per price.

    Raises:
        SettingError: If the calibration belongs to another model, or if a batch or a price is not valid.

    Example:
        ```python
        curve = exprune.tradeoff(model, calibration, unseen)
        print(curve)
        curve.plot("curve.png")
        ```
    """
    given = batches_for(model, calibration, batches, call)
    sites = calibration.sites(model, given)
    chosen = sorted(prices) if prices is not None else default_prices(calibration, sites)
    if not chosen or any(not price > 0 for price in chosen):
        raise SettingError(f"prices={list(chosen)}: must be numbers above 0 (the price of a FLOP in units of loss)")
    return Tradeoff(tuple(observed(model, calibration, sites, given, price, metric).point(seed) for price in chosen))


def batches_for(model: nn.Module, calibration: Calibration, batches: Any, call: Call | None) -> Batches:
    """The given batches, or else those of the calibration."""
    if batches is not None:
        return batches if isinstance(batches, Batches) else Batches(model, batches, call)
    if calibration.batches is None:
        raise SettingError("a calibration that was loaded knows no batches: give some with batches=")
    return calibration.batches


def default_prices(calibration: Calibration, sites: Sequence[Site], count: int = PRICES) -> list[float]:
    """Prices relative to the one at which everything that the sites compute would be worth exactly its cost."""
    damage = flops = 0.0
    for site in sites:
        if site.eligible:
            of = calibration.statistics[site.name]
            assert of.gradient is not None  # calibrate always measures it
            usual = 1.0 if of.rest is None else float(of.rest[0])
            damage += float((of.gradient * (usual * of.sd[0]) ** 2).sum()) / 2
            flops += site.dense_flops * site.outputs
    worth = damage / flops
    if not worth > 0:
        raise SettingError("no gradient reaches any of the layers: they have no effect on the outputs")
    ends = worth * _LOWEST, worth * _HIGHEST
    return [price_at(level, ends) for level in torch.linspace(0, 1, count, dtype=torch.float64).tolist()]


def price_at(level: float, ends: Sequence[float]) -> float:
    """The price at a level between 0 and 1, by logarithmic interpolation between the two ends."""
    return float(ends[0] * (ends[1] / ends[0]) ** level)


def heuristic_at(calibration: Calibration, price: float) -> Optimal:
    """The best known heuristic: optimal stopping, where stopped neurons output their prediction."""
    return Optimal(price, statistics=calibration.statistics, predict=calibration.scope == "all")


@dataclass(frozen=True)
class Observed:
    """What one price gave, example by example.

    Attributes:
        price: The price of a FLOP.
        flops: FLOPs of all batches, dense and pruned.
        measure: The name of the measure.
        values: The measure of each example (examples,).
        same: Whether the most likely class is the same (examples,), or None.
        inputs: The input that each example comes from (examples,).
        falls: The fall of the user's metric for each of its examples, or None.
    """

    price: float
    flops: FlopReport
    measure: str
    values: Tensor
    same: Tensor | None
    inputs: Tensor
    falls: Tensor | None

    def point(self, seed: int = 0) -> Point:
        """The means with their intervals. ``seed`` is that of the bootstrap."""
        change = summarised(self.measure, self.values, self.same, seed, self.inputs)
        return Point(
            self.price,
            self.flops,
            change,
            None if self.falls is None else summarised("metric", self.falls, None, seed),
        )


def observed(
    model: nn.Module,
    calibration: Calibration,
    sites: Sequence[Site],
    batches: Batches,
    price: float,
    metric: Metric | None = None,
) -> Observed:
    """Run one price on some batches, and compare it with the dense model."""
    run = ExPrune(sites, heuristic_at(calibration, price))
    values: list[Tensor] = []
    same: list[Tensor] = []
    inputs: list[Tensor] = []
    falls: list[Tensor] = []
    count = 0
    for batch in bar(batches, f"price {price:.2g}", len(batches)):
        run.rows = data_rows(batch)
        with torch.no_grad():
            dense = batches.call(model, batch)
            of_dense = output_of(dense).clone()
            before = None if metric is None else metric(dense, batch)
            with run:
                pruned = batches.call(model, batch)
        value, alike = apart(calibration.measure, of_dense, output_of(pruned), batch)
        values.append(value)
        same += [] if alike is None else [alike]
        inputs.append(count + inputs_of(of_dense, batch, len(value)))
        count = int(inputs[-1].max()) + 1 if len(value) else count
        if metric is not None and before is not None:
            falls.append(before.float() - metric(pruned, batch).float())
    return Observed(
        price,
        run.flops,
        calibration.measure,
        torch.cat(values),
        torch.cat(same) if same else None,
        torch.cat(inputs),
        torch.cat(falls) if falls else None,
    )
