"""results/make/damage.py: the sums that it adds to optimal stopping, without changing it."""

import importlib
from types import ModuleType

import pytest
import torch
from torch import nn

from exprune.core import ExPrune, InputVariances, Optimal, Recorder, SquaredGradients, find_sites
from tests.cli import ROOT

STAGES = (4, 8, 16)


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "results" / "make"))
    return importlib.import_module("damage")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("predict", [False, True])
def test_expecting_stops_where_optimal_does(damage: ModuleType, activation: type[nn.Module], predict: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 30), activation(), nn.Linear(30, 5)).eval()
    x = torch.randn(400, 24) * torch.linspace(0.1, 3, 24)
    sites = find_sites(model, x)
    with SquaredGradients(sites) as gradients, InputVariances(sites):
        model(x).square().sum().backward()
    with torch.no_grad(), Recorder(sites, STAGES, {site.name: "input" for site in sites if site.eligible}) as recorder:
        model(x)
    found = recorder.statistics()
    for name, of in gradients.mean().items():
        object.__setattr__(found[name], "gradient", of)
    expected = []
    for lam in (1e-7, 1e-5):
        optimal = Optimal(lam, STAGES, found, predict=predict)
        expecting = damage.Expecting(optimal)
        with torch.no_grad(), ExPrune(sites, optimal, gain_ratio=1000) as run:
            out = model(x)
        with torch.no_grad(), ExPrune(sites, expecting, gain_ratio=1000) as watched:
            assert torch.equal(model(x), out)
        assert watched.flops.pruned == run.flops.pruned
        assert set(expecting.expected) == {"2"} and min(expecting.expected.values()) >= 0
        expected.append(sum(expecting.expected.values()))
    assert run.flops.sites[0].pruned > 0 and expected[0] < expected[1]  # a higher price stops more
