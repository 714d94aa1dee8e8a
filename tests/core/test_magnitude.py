"""Compares leaving out small inputs with its definition: a slow loop that compares, leaves out and sums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exprune.core import ExPrune, Magnitude, SettingError, find_sites
from exprune.core.calibration.histogram import Histogram
from tests.core.test_input_order import CASES, block, calibrated, terms_and_patches

TAU = 0.5


@pytest.mark.parametrize(("conv", "options"), CASES)
@pytest.mark.parametrize("tau", [0.0, TAU])
def test_small_inputs_are_left_out_as_the_loop_leaves_them_out(conv: bool, options: dict, tau: float) -> None:
    model, x, site = block(conv, **options)
    measured = calibrated(model, x, site)
    terms, patches = terms_and_patches(model, x)
    norms = patches.square().sum(2).sqrt()
    cut = sorted(norms.flatten().tolist())[math.ceil(TAU * norms.numel()) - 1] if tau else 0.0
    heuristic = Magnitude(tau, measured)
    assert cut <= heuristic.cut(site, tau) <= cut * 1.004
    cut = heuristic.cut(site, tau)

    with torch.no_grad(), ExPrune([site], heuristic, gain_ratio=1000) as run:
        seen = []
        hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        model(x)
        hook.remove()
    with torch.no_grad():
        z = model.z(x).movedim(1, -1).flatten(0, -2)
    out = seen[0].movedim(1, -1).flatten(0, -2)

    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt() if model.relu else torch.ones(4)
    weights = (model.layer.weight != 0).reshape(4, 9, -1).sum(-1).tolist()
    evaluated = nonzero = 0
    for row in range(len(terms)):
        for j in range(4):
            value = z[row, j].item()
            for c in range(9):
                nonzero += 0 if norms[row, c].item() == 0 else weights[j][c]
                if norms[row, c].item() > cut:
                    evaluated += weights[j][c]
                else:
                    value -= (terms[row, j, c] * scale[j]).item()
            value = max(value, 0.0) if model.relu else value
            assert out[row, j].item() == pytest.approx(value, rel=1e-6, abs=1e-6)
    (count,) = run.flops.sites
    comparisons = len(terms) * 9 * (18 + 1 if conv else 1)
    assert count.dense_flops == 2 * sum(map(sum, weights)) * len(terms)
    assert count.pruned_flops == 2 * evaluated + comparisons
    assert count.dense_flops - count.zero_terms == 2 * nonzero
    assert evaluated < nonzero if tau else evaluated == nonzero


@given(
    st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=50),
    st.lists(st.floats(0, 2.0**99, width=32), max_size=50),
)
def test_quantiles_of_numbers_that_are_not_kept(some: list[float], others: list[float]) -> None:
    histogram = Histogram()
    histogram.add(torch.tensor(some))
    histogram.add(torch.tensor(others))
    values = sorted(some + others)
    for step, found in enumerate(histogram.quantiles(16).tolist()):
        true = values[max(math.ceil(step / 16 * len(values)), 1) - 1]
        assert true <= found <= true * (1 + 1 / 128) + 1e-39


def test_every_input_of_a_layer_may_be_left_out() -> None:
    model, x, site = block(False)
    with torch.no_grad(), ExPrune([site], Magnitude(1.0, calibrated(model, x, site))) as run:
        model(x)
    assert run.flops.sites[0].pruned_flops == len(x) * 9


def test_bad_input() -> None:
    with pytest.raises(SettingError, match=r"tau=1.5 of Magnitude: must be a number in \[0, 1\]"):
        Magnitude(1.5)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    with (
        pytest.raises(SettingError, match="Magnitude: no magnitudes of 2's inputs; calibrate with order=input"),
        torch.no_grad(),
        ExPrune(find_sites(model, torch.randn(2, 4)), Magnitude(0.5)),
    ):
        model(torch.randn(2, 4))
