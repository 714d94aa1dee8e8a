"""Unusual input gives the right answer, or an error message of one line."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from exprune.core import (
    Calibrated,
    Dominance,
    ExPrune,
    HeadRecorder,
    InputVariances,
    Optimal,
    Recorder,
    SquaredGradients,
    StatsTest,
    Threshold,
    find_sites,
)
from tests.core.networks import by_name, counts, pruned_pass
from tests.core.test_audit import Net, refused

N = 3


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(2, 4, 1), nn.Linear(4 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden(F.relu(self.stem(x)).flatten(1)))


def test_an_empty_example() -> None:
    model = Flattening().eval()
    full, empty = find_sites(model, torch.randn(2, 2, 3, 3)), find_sites(model, torch.randn(0, 2, 3, 3))
    assert empty == full
    assert by_name(empty)["hidden"].spatial == 9


def test_an_empty_batch(net: Net, x: Tensor) -> None:
    run = pruned_pass(net, find_sites(net, x), StatsTest(0.3, n=N), x[:0])
    assert run.flops.dense == run.flops.pruned == 0 and run.flops.saved == 0


def test_an_exported_module(net: Net, x: Tensor) -> None:
    exported = torch.export.export(net, (x,)).module()
    assert "torch.export" in refused(lambda: find_sites(exported, x))


def test_a_lazy_module_that_has_not_run(x: Tensor) -> None:
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU()).eval()
    line = refused(lambda: find_sites(model, x))
    assert line.startswith("0: ") and "lazy" in line
    assert isinstance(model[0], nn.LazyLinear)
    model(x)
    assert "raw input" in find_sites(model, x)[0].reason


def test_the_meta_device(net: Net, x: Tensor) -> None:
    net, x = net.to("meta"), x.to("meta")
    sites = find_sites(net, x)
    assert by_name(sites)["layer"].eligible
    assert pruned_pass(net, sites, None, x).flops.dense == 40 * 2 * (4 * 9 + 9 * 8 + 8 * 2)
    line = refused(lambda: pruned_pass(net, sites, StatsTest(0.3, n=N), x))
    assert line.startswith("layer: ") and "meta" in line


def test_a_mask_on_the_meta_device(net: Net, x: Tensor) -> None:
    prune.l1_unstructured(net.layer, "weight", 0.3)
    net, x = net.to("meta"), x.to("meta")
    assert "meta" in refused(lambda: ExPrune(find_sites(net, x), None))


def test_what_is_no_model_and_what_is_no_heuristic(net: Net, x: Tensor) -> None:
    assert "function" in refused(lambda: find_sites(lambda x: x, x))
    assert "StatsTest(0.1)" in refused(lambda: ExPrune(find_sites(net, x), StatsTest))


def test_vmap(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)

    def run() -> None:
        with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=N)):
            torch.vmap(net)(x)

    line = refused(run)
    assert "layer" in line and "vmap" in line
    with torch.no_grad(), ExPrune(sites, None) as counted:
        net(x)
    assert counted.flops.dense == 40 * 2 * (4 * 9 + 9 * 8 + 8 * 2)


def test_nested_tensors(net: Net) -> None:
    x = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=torch.jagged)
    sites = find_sites(net, torch.randn(3, 4))
    assert "nested" in refused(lambda: pruned_pass(net, sites, StatsTest(0.3, n=N), x))


@pytest.mark.parametrize("conv", [False, True])
def test_calibration_on_inputs_without_a_batch(conv: bool) -> None:
    """Inputs that come one by one give the same statistics as a batch of them."""
    torch.manual_seed(0)
    if conv:
        model, x = nn.Sequential(nn.Conv2d(2, 9, 1), nn.Conv2d(9, 8, 3), nn.ReLU()), torch.randn(30, 2, 6, 6)
    else:
        model, x = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 8), nn.ReLU()), torch.randn(200, 4)
    model, x = model.double().eval(), x.double()
    sites = find_sites(model, x)
    found = []
    for batches in (x.split(10), list(x)):
        with torch.no_grad(), Recorder(sites, (2, 4)) as recorder, InputVariances(sites) as variances:
            for batch in batches:
                model(batch)
        with SquaredGradients(sites) as gradients:
            for batch in batches:
                model(batch).square().sum().backward()
        of = recorder.statistics()["1"]
        found.append([of.slope, of.offset, of.sd, variances.variances()["1"], gradients.mean()["1"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_head_called_without_a_batch_and_by_keyword(x: Tensor) -> None:
    torch.manual_seed(0)
    head = nn.Linear(9, 30).double()
    inputs = torch.randn(200, 9, dtype=torch.float64)
    found = []
    for call in (
        lambda: head(inputs),
        lambda: head(input=inputs),
        lambda: [head(one) for one in inputs],
        lambda: [head(input=one) for one in inputs],
    ):
        with torch.no_grad(), HeadRecorder(head, (2, 5)) as recorder:
            call()
        statistics = recorder.statistics()
        with torch.no_grad(), Dominance(head, statistics, 0.1) as dominance:
            call()
        found.append((statistics, dominance.decided, dominance.pruned_flops, dominance.dropped))
    for statistics, *rest in found:
        torch.testing.assert_close(statistics.slope, found[0][0].slope)
        torch.testing.assert_close(statistics.sd, found[0][0].sd)
        assert rest == list(found[0][1:])
    with torch.no_grad(), Dominance(head, found[0][0], 0.1):
        assert head(input=inputs[0]).shape == (30,)


@pytest.mark.parametrize("number", [np.int64, np.int32, lambda n: torch.tensor(n), np.array])
def test_whole_numbers_from_elsewhere(net: Net, x: Tensor, number: type) -> None:
    sites = find_sites(net, x)
    expected = counts(pruned_pass(net, sites, StatsTest(0.3, n=3), x))
    heuristic = StatsTest(0.3, n=number(3) if number is not np.array else np.int16(3))
    assert heuristic.stages == (3,) and type(heuristic.stages[0]) is int
    assert counts(pruned_pass(net, sites, heuristic, x)) == expected


@pytest.mark.parametrize(
    "tau",
    [
        np.float64(0.25),
        np.float32(0.25),
        torch.tensor(0.25),
        np.array([0.25]),
        torch.tensor([0.25]),
        [np.float32(0.25)],
        {"*": torch.tensor(0.25)},
    ],
)
def test_real_numbers_from_elsewhere(net: Net, x: Tensor, tau: object) -> None:
    sites = find_sites(net, x)
    run = pruned_pass(net, sites, StatsTest(tau, n=3), x)
    assert run.taus == {"layer": 0.25} and type(run.taus["layer"]) is float
    assert counts(run) == counts(pruned_pass(net, sites, StatsTest(0.25, n=3), x))


def test_other_knobs_from_elsewhere(net: Net, x: Tensor) -> None:
    assert Optimal(np.float32(0.5)).lam == Optimal(torch.tensor(0.5)).lam == 0.5
    assert Calibrated(np.float64(0.1), stages=np.array([2, 4])).stages == (2, 4)
    assert Calibrated(0.1, stages=torch.tensor([2, 4])).stages == (2, 4)
    assert ExPrune(find_sites(net, x), Threshold(0, n=3), gain_ratio=np.float32(0.5)).sites
    for wrong in (np.float32(-1), torch.tensor(float("nan")), np.bool_(True), "0.5", None):
        assert "lam=" in refused(lambda wrong=wrong: Optimal(wrong))
    assert "stages=" in refused(lambda: Calibrated(0.1, stages=[2.5, 4]))
    assert "n=" in refused(lambda: StatsTest(0.1, n=torch.tensor(2.5)))


# An undefined number is no result.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_undefined_calibration_input(net: Net, value: float) -> None:
    x = torch.randn(500, 4)
    x[7, 2] = value
    sites = find_sites(net, x)
    with torch.no_grad(), Recorder(sites, (2, 4)) as recorder, InputVariances(sites) as variances:
        for part in x.split(50):
            net(part)
    if value != value:  # tanh makes a number of inf
        for line in (refused(recorder.statistics), refused(variances.variances)):
            assert "layer" in line and "1 of 500 rows" in line
    else:
        assert recorder.statistics()["layer"].sd.isfinite().all()


def test_an_undefined_weight(net: Net) -> None:
    with torch.no_grad():
        net.layer.weight[3, 4] = float("nan")
    x = torch.randn(500, 4)
    sites = find_sites(net, x)
    with torch.no_grad(), Recorder(sites, (2, 4)) as recorder:
        net(x)
    line = refused(recorder.statistics)
    assert "layer" in line and "500 of 500 rows" in line


def test_an_undefined_gradient(net: Net) -> None:
    x = torch.randn(50, 4)
    with SquaredGradients(find_sites(net, x)) as gradients:
        (net(x).sum() * float("nan")).backward()
    assert "50 of 50 rows" in refused(gradients.mean)


def test_an_undefined_input_of_a_head() -> None:
    head, x = nn.Linear(9, 30), torch.randn(200, 9)
    x[3] = float("inf")
    with torch.no_grad(), HeadRecorder(head, (2, 5)) as recorder:
        head(x)
    assert "1 of 200 rows" in refused(recorder.statistics)
