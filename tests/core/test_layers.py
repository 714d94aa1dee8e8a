"""Layers are found by their calls, whatever the class of their modules."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MLP
from transformers.pytorch_utils import Conv1D

from exprune.core import (
    Calibrated,
    ExPrune,
    InputVariances,
    Recorder,
    SettingError,
    Site,
    StatsTest,
    Threshold,
    find_sites,
    term_order,
)
from tests.core.brute_force import Expected, brute_force, conv_terms, linear_terms, stats_gap, threshold_gap
from tests.core.networks import by_name, pruned_pass, reason_of, scramble

N = 3


class Behind(nn.Module):
    """A layer after a stem and before ``after``."""

    def __init__(self, stem: nn.Module, layer: nn.Module, after: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.after = stem, layer, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(torch.tanh(self.stem(x))))

    def hidden(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.tanh(self.stem(x))


def agrees(model: nn.Module, site: Site, x: Tensor, terms: Tensor, a: Tensor | float, b: Tensor | float) -> None:
    """Threshold and StatsTest stop exactly the neurons that the definition stops."""
    for heuristic, gap, cost in (
        (Threshold(-0.05, n=N), threshold_gap(-0.05), 1),
        (StatsTest(0.3, n=N), stats_gap(0.3), 2 * N + 6),
    ):
        expected: Expected = brute_force(terms, a, b, site.weights_per_term, (N,), gap, lambda n, cost=cost: cost)
        (count,) = pruned_pass(model, [site], heuristic, x).flops.sites
        assert count.stopped == expected.pruned_at and count.pruned > 0
        assert (int(count.negative), int(count.wrong)) == (expected.negative, expected.wrong)
        assert (count.dense_flops, count.pruned_flops) == (expected.dense_flops, expected.pruned_flops)


@pytest.mark.parametrize("leading", [(), (7,), (2, 5), (2, 3, 4)])
def test_a_layer_that_keeps_its_weight_transposed(leading: tuple[int, ...]) -> None:
    """GPT-2's Conv1D: addmm over rows in one dimension, then back to their shape."""
    torch.manual_seed(0)
    model = Behind(nn.Linear(4, 9), Conv1D(8, 9), nn.ReLU()).double().eval()
    with torch.no_grad():
        model.layer.weight.normal_()
        model.layer.bias.normal_()
    x = torch.randn(*leading, 4, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert (site.kind, site.terms, site.outputs, site.eligible) == ("linear", 9, 8, True)
    assert torch.equal(site.weight, model.layer.weight.t())
    agrees(model, site, x, linear_terms(model.hidden(x), model.layer.weight.t()), 1.0, model.layer.bias.detach())


def test_outputs_of_such_a_layer_are_stopped_in_place() -> None:
    torch.manual_seed(0)
    model = Behind(nn.Linear(4, 9), Conv1D(8, 9), nn.ReLU()).double().eval()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        model.layer.weight.normal_()
        dense = model(x)
        run = ExPrune(find_sites(model, x), StatsTest(0.4, n=N))
        with run:
            out = model(x)
    (count,) = run.flops.sites
    assert int(((out == 0) & (dense > 0)).sum()) == int(count.wrong) > 0
    assert torch.equal(out[out != 0], dense[out != 0])


class Product(nn.Module):
    """A layer written by hand."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w, self.b = nn.Parameter(torch.randn(8, 9)), nn.Parameter(torch.randn(8))
        if how != "F.linear":
            self.w = nn.Parameter(torch.randn(9, 8))

    def forward(self, x: Tensor) -> Tensor:
        return {
            "F.linear": lambda: F.linear(x, self.w, self.b),
            "matmul": lambda: x @ self.w + self.b,
            "torch.matmul": lambda: torch.matmul(x, self.w) + self.b,
            "addmm": lambda: torch.addmm(self.b, x, self.w),
        }[self.how]()


@pytest.mark.parametrize("how", ["F.linear", "matmul", "torch.matmul", "addmm"])
def test_layers_written_by_hand(how: str) -> None:
    torch.manual_seed(0)
    model = Behind(nn.Linear(4, 9), Product(how), nn.ReLU()).double().eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    sites = by_name(find_sites(model, x))
    assert list(sites) == ["stem", "layer.w"]
    site = sites["layer.w"]
    assert site.eligible and not site.residual
    weight = model.layer.w if how == "F.linear" else model.layer.w.t()
    agrees(model, site, x, linear_terms(model.hidden(x), weight), 1.0, model.layer.b.detach())


class TwoInOne(nn.Module):
    """A feed-forward block with both weights of its own, at the root of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(8, 9))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(F.relu(F.linear(x, self.first)), self.second))


def test_two_weights_of_one_module_are_two_layers() -> None:
    torch.manual_seed(0)
    model, x = TwoInOne().double().eval(), torch.randn(7, 4, dtype=torch.float64)
    sites = by_name(find_sites(model, x))
    assert list(sites) == ["first", "second"]
    assert "raw input" in sites["first"].reason
    hidden = F.relu(F.linear(x, model.first)).detach()
    agrees(model, sites["second"], x, linear_terms(hidden, model.second), 1.0, 0.0)


def test_weights_of_another_module() -> None:
    """A tied head, computed outside the module that owns the weight."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(20, 9), nn.Linear(9, 9)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.relu(F.linear(F.relu(self.layer(self.embedding(tokens))), self.embedding.weight))

    sites = by_name(find_sites(Tied().eval(), torch.randint(20, (3, 5))))
    assert sites["layer"].eligible
    assert "outside of its own forward" in sites["embedding"].reason


def test_pyg_s_own_linear() -> None:
    torch.manual_seed(0)
    model = scramble(MLP([4, 9, 8, 2])).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    sites = by_name(find_sites(model, x))
    assert [site.name for site in sites.values() if site.eligible] == ["lins.1"]
    assert "raw input" in sites["lins.0"].reason
    with torch.no_grad():
        hidden = F.relu(model.norms[0](model.lins[0](x)))
        norm = model.norms[1].module
        a = norm.weight / (norm.running_var + norm.eps).sqrt()
        b = (model.lins[1].bias - norm.running_mean) * a + norm.bias
    agrees(model, sites["lins.1"], x, linear_terms(hidden, model.lins[1].weight), a, b)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 2, 1), (1, 1, 2), (1, "same", 2)])
def test_conv1d(stride: int, padding: int | str, dilation: int, batch: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(9, 8, 3, stride=stride, padding=padding, dilation=dilation)
    model = Behind(nn.Conv1d(2, 9, 1), layer, nn.ReLU()).double().eval()
    x = torch.randn(*(2,) if batch else (), 2, 7, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert (site.kind, site.terms, site.weights_per_term, site.eligible) == ("conv1d", 9, 3, True)
    hidden = model.hidden(x)
    image = (hidden if batch else hidden[None])[:, :, None]
    pads = "same" if padding == "same" else (0, padding)
    terms = conv_terms(image, layer.weight[:, :, None], (1, stride), pads, (1, dilation))[:, :, 0]
    agrees(model, site, x, terms, 1.0, layer.bias.detach()[:, None])


def test_conv1d_behind_a_batch_norm_and_a_residual() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.norm = nn.Conv1d(2, 9, 1), nn.Conv1d(9, 9, 3, padding=1), nn.BatchNorm1d(9)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.stem(x))
            return F.relu(self.norm(self.layer(x)) + x)

    model, x = scramble(Block()).double(), torch.randn(2, 2, 6, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert site.eligible and site.residual
    with torch.no_grad():
        hidden, norm = torch.tanh(model.stem(x)), model.norm
        a = norm.weight / (norm.running_var + norm.eps).sqrt()
        b = ((model.layer.bias - norm.running_mean) * a + norm.bias)[:, None] + hidden
    terms = conv_terms(hidden[:, :, None], model.layer.weight[:, :, None], (1, 1), (0, 1), (1, 1))[:, :, 0]
    agrees(model, site, x, terms, a[:, None], b)


def test_conv3d() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(5, 4, (2, 1, 3), stride=(1, 2, 1), padding=(0, 0, 1))
    model = Behind(nn.Conv3d(2, 5, 1), layer, nn.ReLU()).double().eval()
    x = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert (site.kind, site.terms, site.weights_per_term, site.eligible) == ("conv3d", 5, 6, True)
    padded = F.pad(model.hidden(x), (1, 1))
    terms = torch.zeros(2, 4, 2, 2, 3, 5, dtype=torch.float64)
    for b, m, i, j, k, c in product(*map(range, terms.shape)):
        patch = padded[b, c, i : i + 2, 2 * j : 2 * j + 1, k : k + 3]
        terms[b, m, i, j, k, c] = (patch * layer.weight[m, c]).sum()
    agrees(model, site, x, terms, 1.0, layer.bias.detach().view(-1, 1, 1, 1))


def test_a_transposed_convolution_says_why_not() -> None:
    model = Behind(nn.Conv2d(2, 9, 1), nn.ConvTranspose2d(9, 8, 3, stride=2), nn.ReLU()).eval()
    x = torch.randn(1, 2, 4, 4)
    site = by_name(find_sites(model, x))["layer"]
    assert (site.kind, site.relu, site.terms, site.reason) == ("conv_transpose2d", True, 9, "transposed convolution")
    with pytest.raises(SettingError, match="transposed convolution"):
        ExPrune(find_sites(model, x), StatsTest(0.1, n=N))


@pytest.mark.parametrize(
    ("layer", "x", "word"),
    [
        (nn.LSTM(9, 8), torch.randn(5, 3, 4), "lstm"),
        (nn.Bilinear(9, 9, 8), torch.randn(5, 4), "bilinear"),
        (nn.MultiheadAttention(9, 3), torch.randn(5, 3, 4), "multi_head_attention_forward"),
    ],
)
def test_other_layers_are_listed_with_their_reason(layer: nn.Module, x: Tensor, word: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Linear(4, 9), layer

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.stem(x))
            arguments = {"lstm": (h,), "bilinear": (h, h)}.get(word, (h, h, h))
            out = self.layer(*arguments)
            return F.relu(out[0] if isinstance(out, tuple) else out)

    assert word in reason_of(Model().eval(), "layer", x)


def test_other_spellings_of_relu() -> None:
    zero = torch.zeros(())
    for relu in (
        lambda z: z.clamp(0, 6),
        lambda z: torch.clamp(z, min=0.0, max=6.0),
        lambda z: z.clip(0, 1e9),
        lambda z: z.clamp(zero),
        lambda z: torch.max(z, zero),
        lambda z: F.threshold(z, 0, 0),
        nn.Threshold(0.0, 0.0),
        nn.LeakyReLU(0.0),
        lambda z: F.leaky_relu(z, negative_slope=0),
        lambda z: F.hardtanh(z, min_val=0.0, max_val=6.0),
        lambda z: F.hardtanh_(z, 0.0, 6.0),
    ):
        torch.manual_seed(0)
        model = Behind(nn.Linear(4, 9), nn.Linear(9, 8), relu).double().eval()
        x = torch.randn(20, 4, dtype=torch.float64)
        site = by_name(find_sites(model, x))["layer"]
        assert site.eligible
        agrees(model, site, x, linear_terms(model.hidden(x), model.layer.weight), 1.0, model.layer.bias.detach())


def test_what_looks_like_one_and_is_none() -> None:
    for function in (
        lambda z: z.clamp(0.1, 6),
        lambda z: z.clamp(-1, 6),
        lambda z: z.clamp(max=0),
        lambda z: F.threshold(z, 0.1, 0),
        lambda z: F.threshold(z, 0, 1.0),
        lambda z: torch.max(z, torch.ones(())),
        lambda z: z.max(dim=1).values,
    ):
        assert reason_of(Behind(nn.Linear(4, 9), nn.Linear(9, 8), function).eval(), "layer", torch.randn(3, 4))


@pytest.mark.parametrize(
    ("stem", "layer", "shape"),
    [
        (nn.Linear(4, 9), Conv1D(8, 9), (30, 5, 4)),
        (nn.Conv1d(2, 9, 1), nn.Conv1d(9, 8, 3), (20, 2, 12)),
        (nn.Conv3d(2, 9, 1), nn.Conv3d(9, 8, 2), (20, 2, 4, 4, 4)),
    ],
)
def test_calibrated_tests_on_any_layer(stem: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Risk 0 stops nothing and keeps the outputs; a larger risk stops more, and neurons that are negative."""
    torch.manual_seed(0)
    model, x = Behind(stem, layer, nn.ReLU()).double().eval(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        model.layer.weight.normal_()
        sites = find_sites(model, x)
        with InputVariances(sites) as variances:
            model(x)
        orders = {"layer": term_order(by_name(sites)["layer"], variances.variances()["layer"], "layer")}
        with Recorder(sites, (2, 4, 6), orders) as recorder:
            model(x)
        statistics = recorder.statistics()
        dense = model(x)
        pruned = []
        for tau in (0.0, 0.05, 0.3):
            with ExPrune(sites, Calibrated(tau, (2, 4, 6), statistics)) as run:
                out = model(x)
            (count,) = run.flops.sites
            pruned.append(count.pruned)
            kept = out != 0
            torch.testing.assert_close(out[kept], dense[kept])
            assert int((~kept & (dense > 0)).sum()) == int(count.wrong) <= 0.5 * max(count.pruned, 1)
    assert pruned[0] == 0 < pruned[1] < pruned[2]
