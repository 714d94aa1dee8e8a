"""Results, sites and runs can be sent between processes."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from exprune.core import Calibrated, ExPrune, FlopReport, Recorder, Site, StatsTest, Threshold, find_sites
from exprune.core.heuristics.heuristic import Heuristic
from tests.core.networks import SmallCNN, counts, pruned_pass, refusal, scramble


class Swish(nn.Module):
    """An activation that does not call any activation function of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 2)
        self.activation = activation
        with torch.no_grad():
            self.layer.weight.mul_(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.layer(torch.tanh(self.stem(x)))))


ACTIVATIONS = [
    F.relu, torch.relu, Tensor.relu, F.relu6, nn.Hardtanh(0, 3), nn.LeakyReLU(0.0), F.gelu, nn.GELU("tanh"), F.silu,
    F.mish, nn.Softplus(2.0), nn.ELU(0.1), F.hardswish, Swish(),
]  # fmt: skip


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = pytest.mark.parametrize("way", [pickled, saved, copy.deepcopy])


def heuristic_of(model: nn.Module, sites: list[Site]) -> Heuristic:
    with torch.no_grad(), Recorder(sites, (3, 6)) as recorder:
        model(torch.randn(300, 6, generator=torch.Generator().manual_seed(2)))
    return Calibrated(0.3, (3, 6), recorder.statistics(), tolerance=0.2)


@WAYS
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: getattr(f, "__name__", str(f)))
def test_sites_with_their_model(activation: Callable, way: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model, x = Net(activation).eval(), torch.randn(40, 6)
    sites = find_sites(model, x)
    heuristic = heuristic_of(model, sites)
    run = pruned_pass(model, sites, heuristic, x)
    assert 0 < run.flops.sites[0].pruned < run.flops.sites[0].outputs
    model_there, sites_there, heuristic_there = way((model, sites, heuristic))
    assert sites_there == sites
    assert all(site.module in set(model_there.modules()) for site in sites_there)
    assert counts(pruned_pass(model_there, sites_there, heuristic_there, x)) == counts(run)
    assert "none of the sites was reached" in refusal(lambda: pruned_pass(model, sites_there, heuristic_there, x))


def figures(flops: FlopReport) -> tuple[Any, ...]:
    return str(flops), flops.dense, flops.pruned, flops.dense_without_zero_terms, [s.stopped for s in flops.sites]


@WAYS
@pytest.mark.parametrize("kind", ["plain", "masked", "in the order of each input", "a class of this function"])
def test_results(kind: str, way: Callable[[Any], Any]) -> None:
    class Local(Swish):
        pass

    torch.manual_seed(0)
    if kind == "a class of this function":
        model, x = Net(Local()).eval(), torch.randn(40, 6)
        sites = find_sites(model, x)
        run = pruned_pass(model, sites, heuristic_of(model, sites), x)
    elif kind == "in the order of each input":
        model, x = Net(F.relu).eval(), torch.randn(300, 6)
        sites = find_sites(model, x)
        with torch.no_grad(), Recorder(sites, (3, 6), {"layer": "input"}) as recorder:
            model(x)
        run = pruned_pass(model, sites, Calibrated(0.3, (3, 6), recorder.statistics()), x)
    else:
        model, x = scramble(SmallCNN()), torch.randn(4, 3, 6, 6)
        if kind == "masked":
            prune.l1_unstructured(model.block1.conv2, "weight", 0.3)
        run = ExPrune(find_sites(model, x), StatsTest(0.3, n=4), gain_ratio=100)
        with torch.no_grad(), run:
            model(x)
    there = way(run.flops)
    assert figures(there) == figures(run.flops)
    assert [count.site for count in there.sites] == [count.site for count in run.flops.sites]
    assert all(count.site.weight is None and count.site.mask is None for count in there.sites)
    assert len(pickle.dumps(there)) < 30_000  # no weights
    if kind == "a class of this function":
        assert "Local" in refusal(lambda: there.sites[0].site.activation(torch.zeros(1)))


def test_results_of_a_model_that_cannot_be_pickled() -> None:
    torch.manual_seed(0)
    model, x = Net(F.relu).eval(), torch.randn(40, 6)
    parametrizations.weight_norm(model.layer)
    run = pruned_pass(model, find_sites(model, x), StatsTest(0.3, n=3), x)
    assert figures(pickled(run.flops)) == figures(run.flops)


@WAYS
def test_a_run_goes_on_where_it_was(way: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model, x = Net(F.relu).eval(), torch.randn(40, 6)
    run = pruned_pass(model, find_sites(model, x), Threshold(0, n=3), x)
    before = counts(run)
    model_there, there = way((model, run))
    assert counts(there) == before
    with torch.no_grad(), run:
        model(x)
    with torch.no_grad(), there:
        model_there(x)
    assert counts(there) == counts(run) != before


def test_counts_are_loaded_without_running_code() -> None:
    torch.manual_seed(0)
    model, x = Net(F.relu).eval(), torch.randn(40, 6)
    sites = find_sites(model, x)
    run, file = pruned_pass(model, sites, Threshold(0, n=3), x), io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = ExPrune(sites, Threshold(0, n=3))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert counts(other) == counts(run)


def in_another_process(model: nn.Module, sites: list[Site], x: Tensor) -> FlopReport:
    return pruned_pass(model, sites, StatsTest(0.3, n=3), x).flops


def test_between_processes() -> None:
    torch.manual_seed(0)
    model, x = Net(F.relu).eval(), torch.randn(40, 6)
    sites = find_sites(model, x)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        flops = pool.apply(in_another_process, (model, sites, x))
    assert figures(flops) == figures(in_another_process(model, sites, x))
