"""Networks with static masks: the remaining terms, the tests that pay, and FLOPs over nonzero weights alone."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from exprune.core import ExPrune, Heuristic, SettingError, StatsTest, Threshold, find_sites
from tests.core.brute_force import Expected, Gap, stats_gap, threshold_gap
from tests.core.networks import SmallCNN, counts, scramble
from tests.core.test_exactness import Case, assert_counts, build, expect

HEURISTICS = [(Threshold, threshold_gap, -0.02), (StatsTest, stats_gap, 0.3)]


def check(case: Case, heuristic: Heuristic, gap: Gap, amount: float, gain_ratio: float) -> Expected:
    """The method on one layer with a random mask, exactly."""
    model, x, residual = build(case)
    prune.random_unstructured(model.layer, "weight", amount)
    with torch.no_grad():
        dense = model(x, residual)
        removed = bool((model.layer.weight_mask == 0).any())  # else the rule for masks does not hold
        expected = expect(case, model, x, residual, heuristic, gap, None, gain_ratio if removed else None)
        sites = find_sites(model, x, residual)
        try:
            run = ExPrune(sites, heuristic, gain_ratio=gain_ratio)
        except SettingError as error:
            few_terms = not removed or case.terms <= heuristic.stages[0]
            assert ("fewer than n + 1" if few_terms else "too few weights left") in str(error)
            assert expected.pruned_flops == expected.dense_flops  # nothing stopped, nothing tested
            return expected
        with run:
            pruned = model(x, residual)
    assert torch.equal(pruned, torch.where(expected.stopped, 0.0, dense))
    (count,) = run.flops.sites
    assert_counts(count, expected)
    positions = dense.numel() // case.outputs
    zeros = int((model.layer.weight_mask == 0).sum())
    assert run.flops.unpruned - run.flops.dense == 2 * zeros * positions
    assert run.flops.dense - run.flops.pruned == expected.dense_flops - expected.pruned_flops
    return expected


@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["threshold", "stats"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", terms=20, outputs=8, leading=(10,)),
        Case("linear", terms=20, outputs=6, leading=(3, 4), bias=False),
        Case("linear", terms=20, outputs=6, leading=(9,), norm=True, join="residual + z"),
        Case(terms=12, outputs=5, padding=(1, 1)),
        Case(terms=12, outputs=5, stride=(2, 2), padding=(1, 1), norm=True, bias=False),
        Case(terms=12, outputs=5, padding=(1, 1), norm=True, join="z + residual"),
        Case(terms=20, outputs=5, kernel=(1, 1)),
        Case(terms=12, outputs=4, size=(7, 6), kernel=(2, 3), dilation=(2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("amount", [0.2, 0.5])
def test_masked_layer(case: Case, kind: Callable, gap: Callable, tau: float, amount: float) -> None:
    expected = check(case, kind(tau, n=3), gap(tau), amount, 0.9)
    assert 0 < expected.stopped.sum() < expected.stopped.numel()


@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["threshold", "stats"])
@settings(max_examples=30, deadline=None)
@given(
    conv=st.booleans(),
    terms=st.integers(1, 14),
    amount=st.floats(0.05, 0.95),
    gain_ratio=st.sampled_from([0.1, 0.5, 1.0, 1000.0]),
    n=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_mask(
    kind: Callable,
    gap: Callable,
    tau: float,
    conv: bool,
    terms: int,
    amount: float,
    gain_ratio: float,
    n: int,
    seed: int,
) -> None:
    case = Case("conv2d" if conv else "linear", terms=terms, leading=(2,), size=(4, 4), seed=seed)
    check(case, kind(tau, n=n), gap(tau), amount, gain_ratio)


@pytest.mark.parametrize("gain_ratio", [1.0, 1000.0])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_stages_under_a_mask(kind: str, gain_ratio: float) -> None:
    """Several stages; output channels run out of terms at different stages."""
    heuristic = Threshold(-0.02, n=2)
    heuristic.stages = (2, 4, 7)
    case = Case(kind, terms=40 if kind == "linear" else 20, outputs=9, leading=(6,))
    expected = check(case, heuristic, threshold_gap(-0.02), 0.6, gain_ratio)
    assert all(expected.pruned_at)


@pytest.mark.parametrize(("kind", "tau"), [(Threshold, -0.01), (StatsTest, 0.3)])
def test_a_mask_of_ones_changes_nothing(kind: Callable, tau: float) -> None:
    torch.manual_seed(0)
    model, x = scramble(SmallCNN().double(), 0).eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)

    def outcome() -> tuple[Tensor, dict]:
        run = ExPrune(find_sites(model, x), kind(tau, n=4), gain_ratio=0.01)
        with torch.no_grad(), run:
            return model(x), counts(run)

    plain, plain_counts = outcome()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            prune.identity(module, "weight")
    masked, masked_counts = outcome()
    assert torch.equal(plain, masked)
    assert plain_counts == masked_counts
    assert any(count[1] != [0] for name, count in plain_counts.items() if name not in ("dense", "pruned"))


def test_zeros_of_layers_that_are_no_sites_count() -> None:
    """The stem and the head, masked, against a direct count of their multiply-adds; also without a heuristic."""
    torch.manual_seed(0)
    model, x = scramble(SmallCNN().double(), 0).eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    sites = find_sites(model, x)
    prune.l1_unstructured(model.stem, "weight", 0.5)
    prune.l1_unstructured(model.head, "weight", 0.25)
    expected = 2 * (2 * 108 * 6 * 6 + 2 * 12)  # half of 3 * 8 * 9 weights at 36 positions, a quarter of 12 * 4 at one
    for run in (ExPrune(sites, Threshold(-0.01, n=4)), ExPrune(sites, None)):
        with torch.no_grad(), run:
            model(x)
        assert run.flops.unpruned - run.flops.dense == expected
    assert run.flops.pruned == run.flops.dense and run.flops.sites == ()


@pytest.mark.parametrize("gain_ratio", [0, -0.1, math.nan, "much", True, [0.5], {"nowhere": 0.5}])
def test_wrong_gain_ratio(gain_ratio: object) -> None:
    model = SmallCNN().eval()
    sites = find_sites(model, torch.randn(1, 3, 6, 6))
    with pytest.raises(SettingError, match="gain_ratio"):
        ExPrune(sites, Threshold(-0.01, n=4), gain_ratio=gain_ratio)


def test_gain_ratio_of_each_site() -> None:
    """Where the gain ratio asks for more terms than are left, the site runs dense and says so."""
    torch.manual_seed(0)
    model, x = SmallCNN().eval(), torch.randn(1, 3, 6, 6)
    for module in (model.block1.conv1, model.block1.conv2):
        prune.random_unstructured(module, "weight", 0.5)
    sites = find_sites(model, x)
    heuristic = Threshold({"block1.conv1": -0.1, "*": -0.01}, n=4)  # a site that then runs dense may still be named
    run = ExPrune(sites, heuristic, gain_ratio={"block1.conv1": 0.01, "*": 0.9})
    reasons = {site.name: site.reason for site in run.sites}
    assert "gain_ratio=0.01" in reasons["block1.conv1"]
    assert reasons["block1.conv2"] is None
