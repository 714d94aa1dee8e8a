"""The audit of a run: counts and outputs follow the method, or one line names those that do not."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import regnet_y_400mf

from exprune.core import Calibrated, ExPrune, Recorder, SettingError, StatsTest, Threshold, find_sites
from tests.core.networks import by_name, counts, pruned_pass, scramble

N = 3


class Net(nn.Module):
    """A stem and a hidden layer after it, with dropout in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 9), nn.Linear(9, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(self.dropout(torch.tanh(self.stem(x))))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


def refused(call: Callable[[], object]) -> str:
    """The one line of the error that a call raises."""
    with pytest.raises(SettingError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Shortcut(nn.Module):
    """A residual block whose shortcut is a convolution, added on the left or on the right."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left
        self.stem, self.f, self.p = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.f2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        f = self.f2(F.relu(self.f(x)))
        return F.relu(self.p(x) + f if self.left else f + self.p(x))


def masked(model: nn.Module, amount: float = 0.3) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount)
    return model


def test_a_masked_shortcut_on_either_side() -> None:
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    runs = []
    for left in (True, False):
        torch.manual_seed(0)
        model = masked(Shortcut(left)).eval()
        sites = find_sites(model, x)
        assert [site.name for site in sites if site.eligible] == ["f", "f2"]
        runs.append(ExPrune(sites, StatsTest(0.3, n=N), gain_ratio=100))
        with torch.no_grad(), runs[-1]:
            model(x)
    assert counts(runs[0]) == counts(runs[1])
    assert all(count.outputs == 4 * 8 * 36 and count.pruned > 0 for count in runs[0].flops.sites)


def test_every_site_of_a_masked_regnet_is_tested() -> None:
    torch.manual_seed(0)
    model = masked(scramble(regnet_y_400mf(num_classes=3)))
    images = torch.randn(1, 3, 32, 32)
    sites = find_sites(model, images)
    run = ExPrune(sites, Threshold(0, n=8), gain_ratio=1000)
    with torch.no_grad(), run:
        model(images)
    assert {count.site.name for count in run.flops.sites} == {site.name for site in run.sites if site.eligible}
    assert all(count.outputs for count in run.flops.sites)


def test_batches_in_worker_threads(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)

    def run() -> None:
        with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=N)), ThreadPoolExecutor(2) as pool:
            list(pool.map(net, x.split(20)))

    line = refused(run)
    assert "another thread" in line and "stem" in line


def test_each_thread_may_have_a_context_of_its_own(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)
    alone = counts(pruned_pass(net, sites, StatsTest(0.3, n=N), x))
    together = threading.Barrier(2)

    def run(_: int) -> ExPrune:
        with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=N)) as run:
            together.wait(10)
            net(x)
            together.wait(10)
        return run

    with ThreadPoolExecutor(2) as pool:
        assert [counts(run) for run in pool.map(run, range(2))] == [alone, alone]


def test_a_forward_that_is_called_directly(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)

    def run() -> None:
        with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=N)):
            net.head(F.relu(net.layer.forward(net.stem(x))))

    line = refused(run)
    assert "layer" in line and "while its module did not run" in line


def test_an_inner_run_s_partial_sums_are_no_work_of_the_model(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)
    with torch.no_grad(), Recorder(sites, (2, 4, 6)) as recorder:
        net(torch.randn(300, 4))
    for heuristic in (StatsTest(0.3, n=N), Calibrated(0.2, (2, 4, 6), recorder.statistics())):
        alone = counts(pruned_pass(net, sites, heuristic, x))
        outer, inner = ExPrune(sites, None), ExPrune(sites, heuristic)
        with torch.no_grad(), outer, inner:
            net(x)
        assert counts(inner) == alone
        assert outer.flops.dense == outer.flops.pruned == alone["dense"] == 40 * 2 * (4 * 9 + 9 * 8 + 8 * 2)


def test_dropout_in_training_mode_is_refused(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)
    net.train()
    line = refused(lambda: pruned_pass(net, sites, StatsTest(0.3, n=N), x))
    assert "training mode" in line and "eval()" in line
    assert "training mode" in refused(lambda: pruned_pass(net, sites, None, x))
    net.eval()
    net.dropout.train()  # Monte Carlo dropout is intended, as every layer is in eval mode
    assert pruned_pass(net, sites, StatsTest(0.3, n=N), x).flops.sites[0].outputs == 40 * 8


@pytest.mark.parametrize("how", ["data", "in place, through data", "numpy"])
def test_weights_exchanged_inside_a_context(net: Net, x: Tensor, how: str) -> None:
    sites = find_sites(net, x)
    with torch.no_grad(), Recorder(sites, (2, 4, 6)) as recorder:
        net(torch.randn(300, 4))
    heuristic = Calibrated(0.0, (2, 4, 6), recorder.statistics())  # stops nothing, but computes in parts
    with torch.inference_mode(), ExPrune(sites, heuristic):
        net(x)
        if how == "data":
            net.layer.weight.data = torch.randn(8, 9)
        elif how == "numpy":
            net.layer.weight.detach().numpy()[:] *= -2
        else:
            net.layer.weight.data.mul_(-2)
        out = net(x)
    with torch.no_grad():
        torch.testing.assert_close(out, net(x))


class Branching(Net):
    """What happens to the pre-activation depends on a switch, as it could on data."""

    branch = "relu"

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(torch.tanh(self.stem(x)))
        if self.branch == "sigmoid":
            return self.head(torch.sigmoid(z))
        if self.branch == "changed":
            z *= torch.rand(40, 1)
        out = F.relu(z)
        if self.branch == "read":
            out = out + z.mean()
        if self.branch == "skipped":
            return self.head(F.relu(F.relu(z) + self.layer(torch.tanh(self.stem(x)))))
        return self.head(out)


@pytest.mark.parametrize(
    ("branch", "words"),
    [
        ("sigmoid", ["layer", "read by sigmoid"]),
        ("changed", ["layer", "read by mul"]),
        ("read", ["layer", "read by mean"]),
    ],
)
def test_another_branch_than_when_the_sites_were_found(x: Tensor, branch: str, words: list[str]) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    sites = find_sites(model, x)
    assert by_name(sites)["layer"].eligible
    model.branch = branch
    line = refused(lambda: pruned_pass(model, sites, StatsTest(0.3, n=N), x))
    assert all(word in line for word in words), line


def test_a_layer_of_another_shape_than_planned(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)
    net.stem, net.layer.weight = nn.Linear(4, 7).eval(), nn.Parameter(torch.randn(8, 7))
    line = refused(lambda: pruned_pass(net, sites, StatsTest(0.3, n=N), x))
    assert "layer" in line and "8 x 7" in line


def test_a_mask_that_changed_since(net: Net, x: Tensor) -> None:
    prune.l1_unstructured(net.layer, "weight", 0.3)
    run = ExPrune(find_sites(net, x), Threshold(0, n=N), gain_ratio=100)
    prune.l1_unstructured(net.layer, "weight", 0.3)
    assert "layer" in refused(run.__enter__)


def test_a_site_that_is_not_called_is_none_that_failed(net: Net, x: Tensor) -> None:
    sites = find_sites(net, x)
    with torch.no_grad(), ExPrune(sites, StatsTest(0.3, n=N)) as run:
        net.head(torch.randn(5, 8))
        net(x[:0])
        net(x)
    assert run.flops.sites[0].outputs == 40 * 8


def test_the_sites_of_another_model(net: Net, x: Tensor) -> None:
    line = refused(lambda: pruned_pass(Net().eval(), find_sites(net, x), StatsTest(0.3, n=N), x))
    assert "none of the sites was reached" in line


def test_what_is_computed_in_scripted_functions_is_counted(x: Tensor) -> None:
    model = Scripted().eval()
    sites = find_sites(model, x)
    assert "scripted" in next(site.reason for site in sites if site.hidden)
    with torch.no_grad(), FlopCounterMode(display=False) as outside:
        model(x)
    run = pruned_pass(model, sites, StatsTest(0.3, n=N), x)
    assert run.flops.dense == outside.get_total_flops() == 40 * 2 * (4 * 9 + 9 * 9 + 9 * 8 + 8 * 2)


@torch.jit.script
def squashed(x: Tensor, weight: Tensor) -> Tensor:
    return torch.tanh(torch.mm(x, weight))


class Scripted(Net):
    """A product inside of a scripted function."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Parameter(torch.randn(9, 9))

    def forward(self, x: Tensor) -> Tensor:
        hidden = squashed(torch.tanh(self.stem(x)), self.between)
        return self.head(F.relu(self.layer(hidden)))
