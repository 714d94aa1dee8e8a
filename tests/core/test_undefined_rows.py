"""One row holds NaN, infinities or huge values: the other rows and the model's own answer do not change."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from exprune.core import (
    Calibrated,
    Cats,
    Chess,
    Dominance,
    ExPrune,
    HeadRecorder,
    Heuristic,
    InputVariances,
    Magnitude,
    Optimal,
    Recorder,
    RSparse,
    Site,
    SiteStatistics,
    SquaredGradients,
    StatsTest,
    Threshold,
    find_sites,
    select_sites,
    term_order,
)
from tests.core.networks import refusal

STAGES = (4, 8, 16)
BAD = 3  # the row
VALUES = [math.nan, -math.nan, math.inf, -math.inf, 1e25, -1e25, 1e38]


class Net(nn.Module):
    """Two layers before an activation; the second has a residual."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (
            nn.Linear(*size) for size in [(20, 40), (40, 40), (40, 40), (40, 5)]
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(self.stem(x)))
        return self.head(self.activation(self.second(x) + x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.up = nn.Linear(20, 40), nn.Linear(40, 64), nn.Linear(40, 64)
        self.down, self.head = nn.Linear(64, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(6, 20, 3, padding=1), nn.Conv2d(20, 18, 3), nn.Linear(18 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.stem(x)))).flatten(1))


def masked(model: nn.Module) -> nn.Module:
    prune.l1_unstructured(model.first, "weight", 0.3)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: Net(F.relu), (20,)),
    "gelu": (lambda: Net(F.gelu), (20,)),
    "masked": (lambda: masked(Net(F.relu)), (20,)),
    "gated": (Gated, (20,)),
    "images": (Images, (6, 5, 5)),
}
Statistics = dict[str, SiteStatistics]
HEURISTICS: dict[str, Callable[[Statistics], Heuristic]] = {
    "calibrated": lambda s: Calibrated(0.3, STAGES, s, tolerance=0.3),
    "optimal": lambda s: Optimal(1e-4, STAGES, s),
    "predict": lambda s: Optimal(1e-4, STAGES, s, predict=True),
    "magnitude": lambda s: Magnitude(0.3, s),
    "r_sparse": lambda s: RSparse(0.3, 2, s),
    "cats": lambda s: Cats(0.3, s),
    "chess": lambda s: Chess(0.3, s),
}


def calibrated(model: nn.Module, sites: list[Site], x: Tensor, order: str) -> Statistics:
    with torch.no_grad(), InputVariances(sites) as inputs:
        model(x)
    orders = {name: term_order(of(sites, name), values, order) for name, values in inputs.variances().items()}
    with torch.no_grad(), Recorder(sites, STAGES, orders) as recorder:
        model(x)
    with SquaredGradients(sites) as gradients:
        model(x).square().sum().backward()
    means = gradients.mean()
    return {name: replace(one, gradient=means[name]) for name, one in recorder.statistics().items()}


def of(sites: list[Site], name: str) -> Site:
    return next(site for site in sites if site.name == name)


def run(model: nn.Module, sites: list[Site], heuristic: Heuristic, x: Tensor) -> tuple[Tensor, ExPrune]:
    with torch.no_grad(), ExPrune(sites, heuristic) as run:
        return model(x), run


def spoiled(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(len(x), -1)[BAD, :7] = value
    return x


def without(values: Tensor) -> Tensor:
    return torch.cat([values[:BAD], values[BAD + 1 :]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["relu", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_row_in_the_order_of_each_input(name: str, scope: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().eval()
    sites = select_sites(find_sites(model, torch.randn(2, *shape)), None, scope)
    statistics = calibrated(model, sites, torch.randn(300, *shape), "input")
    model, x = model.to(dtype), torch.randn(10, *shape, dtype=dtype)
    sites = select_sites(find_sites(model, x), None, scope)
    rules = ["predict", "magnitude", "r_sparse", *(["cats", "chess"] if name != "images" else [])]
    for kind in rules if scope == "all" else ["calibrated", "optimal", *rules[:4]]:  # a factor is no site of relu
        expected, alone = run(model, sites, HEURISTICS[kind](statistics), without(x))
        assert any(count.pruned for count in alone.flops.sites)
        for value in VALUES:
            batch = spoiled(x, value)
            with torch.no_grad():
                dense = model(batch)[BAD]
            out, counted = run(model, sites, HEURISTICS[kind](statistics), batch)
            torch.testing.assert_close(without(out), expected)
            torch.testing.assert_close(out[BAD], dense, equal_nan=True)
            if name != "images":  # of which some positions are as always
                stopped = [count.stopped for count in counted.flops.sites]
                assert stopped == [count.stopped for count in alone.flops.sites], (kind, value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_row_in_another_order(name: str, value: float) -> None:
    """For a neuron that stops, the terms that are not evaluated may have any value."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(10, *shape)
    heuristics: list[Heuristic] = [StatsTest(0.3, n=4), Threshold(0, n=4)] if name not in ("gelu", "gated") else []
    if name != "masked":
        sites = select_sites(find_sites(model, x), None, "all")
        statistics = calibrated(model, sites, torch.randn(300, *shape), "layer")
        heuristics += [HEURISTICS["predict"](statistics)]
    for heuristic in heuristics:
        sites = select_sites(find_sites(model, x), None, "all" if heuristic.predicts else "relu")
        expected, _ = run(model, sites, heuristic, without(x))
        batch = spoiled(x, value)
        out, _ = run(model, sites, heuristic, batch)
        torch.testing.assert_close(without(out), expected)
        if heuristic.predicts and not math.isfinite(value):
            assert not out[BAD].isfinite().any()


def test_a_gate_that_overflows() -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(10, 20)
    sites = select_sites(find_sites(model, x), None, "all")
    statistics = calibrated(model, sites, torch.randn(300, 20), "input")
    with torch.no_grad():
        model.gate.bias[5] = math.nan
        dense = model.gate(model.stem(x))
        out, counted = run(model, sites, HEURISTICS["predict"](statistics), x)
    assert dense[:, 5].isnan().all() and out.isnan().all()
    assert {count.site.name: count.pruned > 0 for count in counted.flops.sites}["up"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
def test_one_row_of_a_head(value: float) -> None:
    torch.manual_seed(0)
    head, x = nn.Linear(20, 30), torch.randn(200, 20)
    with torch.no_grad(), HeadRecorder(head, (4, 8)) as recorder:
        head(x)
    statistics = recorder.statistics()
    with torch.no_grad(), Dominance(head, statistics, 0.3):
        expected, out = head(x), head(spoiled(x, value))
    assert torch.equal(without(out), without(expected))
    with torch.no_grad():
        assert out[BAD].argmax() == head(spoiled(x, value))[BAD].argmax()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
@pytest.mark.parametrize("name", ["relu", "gated", "images"])
def test_one_row_of_the_calibration(name: str, value: float) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(300, *shape)
    sites, batch = find_sites(model, x), spoiled(x, value)
    first = next(site.name for site in sites if site.eligible)

    def with_(context: Any, ask: Callable[[Any], object]) -> str:
        def measured() -> None:
            with torch.no_grad(), context:
                model(batch)
            ask(context)

        return refusal(measured)

    for order in ("input", None):
        orders = {site.name: order for site in sites}
        line = with_(Recorder(sites, STAGES, orders), Recorder.statistics)
        assert re.search(rf": [1-9]\d* of \d+ rows at {first} hold NaN", line)
    line = with_(InputVariances(sites), InputVariances.variances)
    assert f"rows at {first} hold NaN" in line
    assert "1 of 300 rows" in line or name == "images"
