"""Decoding with kernels, compared with float64 by hand, the simulation and the model; and what is refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import OPTConfig, OPTForCausalLM

import exprune
from exprune.core import (
    Calibrated,
    Dominance,
    ExPrune,
    HeadRecorder,
    Heuristic,
    InputVariances,
    Optimal,
    Recorder,
    SettingError,
    Site,
    SquaredGradients,
    StatsTest,
    find_sites,
    select_sites,
    term_order,
)
from exprune.core.accounting.plan import make_plan
from exprune.core.decisions.apply import bounds
from exprune.fast import faster, kernels

STAGES = (8, 16, 24)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


class Net(nn.Module):
    """A stem, and two layers around a ReLU whose neurons are mostly negative."""

    def __init__(self, hidden: int = 40, neurons: int = 77, bias: bool = True, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.stem = nn.Linear(12, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, neurons, bias=bias), activation(), nn.Linear(neurons, hidden, bias=bias)
        )
        self.head = nn.Linear(hidden, 5)
        if bias:
            nn.init.constant_(self.mlp[0].bias, -0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(torch.tanh(self.stem(x))))


def made(seed: int = 0, order: str = "layer", **settings: Any) -> tuple[Net, list[Site], dict[str, Any]]:
    """Return a network, its site, and the statistics of the site."""
    torch.manual_seed(seed)
    model = Net(**settings).eval()
    sites = select_sites(find_sites(model, torch.randn(4, 12)), "mlp.0")
    some = torch.randn(400, 12)
    with InputVariances(sites) as variances, SquaredGradients(sites) as gradients:
        model(some).square().sum().backward()
    model.zero_grad(set_to_none=True)
    orders = {name: term_order(by_name(sites, name), of, order) for name, of in variances.variances().items()}
    with torch.no_grad(), Recorder(sites, STAGES, orders) as recorder:
        model(some)
    of_each = gradients.mean()
    measured = {name: replace(of, gradient=of_each[name]) for name, of in recorder.statistics().items()}
    return model, sites, measured


def by_name(sites: list[Site], name: str) -> Site:
    return next(site for site in sites if site.name == name)


HEURISTICS = {
    "calibrated": lambda statistics: Calibrated(0.05, STAGES, statistics),
    "optimal": lambda statistics: Optimal(1e-4, STAGES, statistics),
}


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """A test may set more variables."""
    yield
    torch.set_num_threads(1)


def test_every_kernel_is_compiled_before_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the first timing after an installation would include the compilation."""
    called = []

    def spy(name: str, kernel: Callable[..., int]) -> Callable[..., int]:
        return lambda *args: called.append(name) or kernel(*args)

    for name in ("staged", "down"):
        monkeypatch.setattr(kernels, name, spy(name, getattr(kernels, name)))
    model, sites, statistics = made()
    with faster(model, sites, HEURISTICS["optimal"](statistics)) as fast:
        assert called == ["staged", "down"]
        assert all(layer.rows == layer.read == 0 for layer in fast.layers)
        with torch.inference_mode():
            model(torch.randn(1, 12))


@pytest.mark.parametrize("name", HEURISTICS)
@pytest.mark.parametrize("order", ["layer", "model"])
@pytest.mark.parametrize("bias", [True, False])
def test_stops_what_the_simulation_stops(name: str, order: str, bias: bool) -> None:
    model, sites, statistics = made(order=order, bias=bias)
    heuristic = HEURISTICS[name](statistics)
    x = torch.randn(64, 12)
    with torch.no_grad(), ExPrune(sites, heuristic) as run:
        simulated = torch.cat([model(row[None]) for row in x])
    with torch.inference_mode(), faster(model, sites, heuristic, switch=False) as fast:
        quick = torch.cat([model(row[None]) for row in x])
    (count,) = run.flops.sites
    assert sum(count.stopped) > 100  # or nothing was tested
    torch.testing.assert_close(quick, simulated, atol=1e-5, rtol=1e-5)
    up, down = fast.layers
    assert up.density < 1 and down.density < 0.6
    unread = sum((40 - n) * stopped for n, stopped in zip(STAGES, count.stopped, strict=True))
    read = 1 - unread / (40 * 77 * len(x))
    assert up.density == pytest.approx(read, abs=1e-3)  # the weights that it counts are those that are read


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neurons", [3, 77, 600])
@pytest.mark.parametrize("threads", [1, 2])
def test_against_float64_with_the_same_stops(dtype: torch.dtype, neurons: int, threads: int) -> None:
    model, sites, statistics = made(neurons=neurons)
    heuristic = Calibrated(0.05, STAGES, statistics)
    up, down = (model.mlp[k].to(dtype) for k in (0, 2))
    weights = [layer.weight.detach().double().clone() for layer in (up, down)]
    biases = [layer.bias.detach().double().clone() for layer in (up, down)]
    order = statistics["mlp.0"].order
    site = by_name(sites, "mlp.0")
    plan = make_plan(site, STAGES, 1.0, order)
    below = bounds(heuristic.solve(site, plan, 0.05), up.bias.detach().float())
    rows = torch.randn(6, 40).to(dtype)
    torch.set_num_threads(threads)
    with torch.inference_mode(), faster(model, sites, heuristic, switch=False):
        given = torch.cat([model.mlp(row[None]) for row in rows])
    for row, out in zip(rows.double(), given.double(), strict=True):
        hidden = []
        for j in range(neurons):
            terms = [float(w) * float(v) for w, v in zip(weights[0][j, order], row[order], strict=True)]
            stopped = any(sum(terms[:n]) < float(bound[j]) for n, bound in zip(STAGES, below, strict=True))
            z = sum(terms) + float(biases[0][j])
            hidden.append(0.0 if stopped else max(z, 0.0))
        want = weights[1] @ torch.tensor(hidden, dtype=torch.float64) + biases[1]
        tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(out, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 5, 8, 9, 300])
@pytest.mark.parametrize("activation", [nn.ReLU, Squared])
def test_stops_nothing_at_no_price(rows: int, activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Net(activation=activation).eval()
    if activation is nn.ReLU:
        model, sites, statistics = made()
        heuristic: Heuristic | None = Optimal(0.0, STAGES, statistics)
    else:
        sites, heuristic = [relu_site(model)], None
    x = torch.randn(rows, 12)
    with torch.inference_mode():
        dense = model(x)
        with faster(model, sites, heuristic, switch=False) as fast:
            quick = model(x)
    torch.testing.assert_close(quick, dense, atol=1e-5, rtol=1e-5)
    assert (fast.layers[-1].rows == 0) == (rows > 8)


def relu_site(model: Net) -> Site:
    """Return the site as if a plain ReLU followed it: find_sites does not return a squared ReLU yet."""
    plain = Net().eval()
    (site,) = select_sites([s for s in find_sites(plain, torch.randn(4, 12)) if s.name == "mlp.0"], "mlp.0")
    return replace(site, layer=replace(site.layer, stored=replace(site.stored, module=model.mlp[0])))


def test_all_is_as_it_was() -> None:
    model, sites, statistics = made()
    before = {name: (p, p.detach().clone(), p.stride()) for name, p in model.named_parameters()}
    heuristic = Calibrated(0.1, STAGES, statistics)
    with torch.inference_mode():
        for failing in (False, True):
            try:
                with faster(model, sites, heuristic):
                    model(torch.randn(1, 12))
                    assert torch.equal(model.mlp[0].weight, before["mlp.0.weight"][1])  # for any other use
                    if failing:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            for name, p in model.named_parameters():
                same, values, stride = before[name]
                assert p is same and torch.equal(p, values) and p.stride() == stride
            assert not any("forward" in module.__dict__ for module in model.modules())
    model(torch.randn(3, 12)).sum().backward()  # and can be trained further
    assert model.mlp[0].weight.grad is not None


def test_a_kernel_that_is_slower_gives_way() -> None:
    model, sites, statistics = made()
    x = torch.randn(1, 12)
    with torch.inference_mode(), faster(model, sites, Calibrated(0.1, STAGES, statistics)) as fast:
        for layer in fast.layers:
            layer.dense_seconds = 0.0
        for _ in range(8):
            model(x)
        after = model(x)
    assert not any(layer.kept for layer in fast.layers)
    with torch.inference_mode():
        assert torch.equal(after, model(x))


def opt(dtype: torch.dtype = torch.float32) -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50, hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=2, eos_token_id=None,
    )  # fmt: skip
    return OPTForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generate_gives_the_same_tokens_where_nothing_stops(dtype: torch.dtype) -> None:
    model = opt(dtype)
    prompt = torch.randint(3, 50, (1, 11))
    sites = find_sites(model, prompt)
    greedy: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    want = model.generate(prompt, **greedy)
    with faster(model, sites, None, switch=False) as fast:
        tokens = model.generate(prompt, **greedy)
    assert torch.equal(tokens, want)
    assert [layer.name for layer in fast.layers] == [f"model.decoder.layers.{k}.fc2" for k in (0, 1)]
    assert all(layer.rows == 19 and 0.2 < layer.density < 0.8 for layer in fast.layers)
    again = model.generate(prompt, **greedy)
    assert torch.equal(again, want)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("order", [None, "reversed"])
def test_the_head_drops_what_dominance_drops(tied: bool, order: str | None) -> None:
    model = opt()
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.lm_head.weight.mul_(torch.linspace(2, 0.1, 64))
    some, prompt = torch.randint(3, 50, (40, 12)), torch.randint(3, 50, (1, 9))
    turned = None if order is None else torch.arange(64).flip(0)
    with torch.no_grad(), HeadRecorder(model.lm_head, (8, 24, 40), turned) as recorder:
        model(some)
    head = Dominance(model.lm_head, recorder.statistics(), 0.01)
    sites = find_sites(model, prompt)
    x = torch.randint(3, 50, (30, 5))
    with torch.inference_mode():
        dense = model(x).logits
        with head:
            simulated = torch.cat([model(row[None]).logits for row in x])
        with faster(model, sites, None, head, switch=False) as fast:
            quick = torch.cat([model(row[None]).logits for row in x])
    assert torch.equal(model(x).logits.argmax(-1), dense.argmax(-1))  # the embedding is as it was
    dropped = simulated.isinf()
    assert 0.02 < dropped.float().mean() < 1
    assert (dropped == quick.isinf()).float().mean() > 0.999
    torch.testing.assert_close(quick.masked_fill(dropped, 0), simulated.masked_fill(dropped, 0), atol=1e-4, rtol=1e-4)
    assert fast.layers[-1].density < 1
    nothing = Dominance(model.lm_head, recorder.statistics(), 0.0)
    with torch.inference_mode(), faster(model, sites, None, nothing, switch=False):
        torch.testing.assert_close(model(x[:1]).logits, dense[:1], atol=1e-5, rtol=1e-5)


def conv_net() -> tuple[nn.Module, list[Site]]:
    model = nn.Sequential(nn.Conv2d(2, 9, 1), nn.Tanh(), nn.Conv2d(9, 9, 1), nn.ReLU(), nn.Conv2d(9, 1, 1)).eval()
    return model, find_sites(model, torch.randn(1, 2, 4, 4))


class Normed(nn.Module):
    """A BatchNorm between the layer and its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.norm, self.fc2 = (
            nn.Linear(12, 40),
            nn.Linear(40, 30),
            nn.BatchNorm1d(30),
            nn.Linear(30, 4),
        )
        self.norm.running_mean.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.norm(self.fc1(torch.tanh(self.stem(x))))))


def refused(expected: str, act: Callable[[], object]) -> None:
    with pytest.raises(SettingError, match=expected) as caught:
        act()
    assert "\n" not in str(caught.value)


def entered(model: nn.Module, sites: list[Site], heuristic: Heuristic | None, act: Callable[[], object] = int) -> None:
    with torch.inference_mode(), faster(model, sites, heuristic, switch=False):
        act()


def test_refuses_what_it_cannot_serve() -> None:
    model, sites, statistics = made()
    good = Calibrated(0.1, STAGES, statistics)
    x = torch.randn(1, 12)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    refused("no kernel for StatsTest", lambda: entered(model, sites, StatsTest(0.1)))
    refused("no statistics of site mlp.0", lambda: entered(model, sites, Calibrated(0.1, STAGES)))
    predicting = Optimal(1e-4, STAGES, statistics, predict=True)
    refused("predict=true", lambda: entered(model, sites, predicting))
    for order in ("neuron", "input"):
        other, other_sites, of_order = made(order=order)
        refused(f"order={order}", lambda: entered(other, other_sites, Calibrated(0.1, STAGES, of_order)))  # noqa: B023
    refused("2 is a conv2d", lambda: entered(*conv_net(), None))
    refused("no eligible site", lambda: entered(model, [], good))
    refused("another faster context", lambda: entered(model, sites, good, lambda: entered(model, sites, good)))
    refused("training mode", lambda: entered(model.train(), sites, good))
    refused("mlp.0 is in training mode", lambda: entered(model.eval(), sites, good, lambda: model.train()(x)))
    model.eval()

    def with_gradients() -> None:
        with faster(model, sites, good, switch=False):
            model(x)

    refused("gradients are enabled", with_gradients)
    refused("mlp.0 is float64", lambda: entered(model.double(), sites, good))
    model.float()

    def change() -> None:
        with torch.inference_mode(False), torch.no_grad():
            model.mlp[2].weight.mul_(2.0)

    refused("weight of mlp.2 cannot be changed", lambda: entered(model, sites, good, change))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name

    prune.random_unstructured(model.mlp[0], "weight", 0.5)
    masked = select_sites(find_sites(model, torch.randn(4, 12)), "mlp.0")
    refused("static mask", lambda: entered(model, masked, None))


def test_refuses_what_lies_between_the_layers() -> None:
    torch.manual_seed(0)
    model = Normed().eval()
    sites = select_sites(find_sites(model, torch.randn(4, 12)), "fc1")
    with torch.no_grad(), Recorder(sites, STAGES, {}) as recorder:
        model(torch.randn(400, 12))
    heuristic = Calibrated(0.1, STAGES, recorder.statistics())
    refused("not the ReLU of fc1", lambda: entered(model, sites, heuristic, lambda: model(torch.randn(1, 12))))
    entered(model, sites, None, lambda: model(torch.randn(1, 12)))  # zeros are zeros all the same


def test_a_calibration_and_a_price_serve_as_well() -> None:
    torch.manual_seed(0)
    model, batches = Net().eval(), list(torch.randn(8, 64, 12))
    relu = exprune.calibrate(model, batches, sites="mlp.0", order="layer", scope="relu", stages=STAGES)
    price, x = 1e-5, torch.randn(2, 12)
    with torch.no_grad(), exprune.prune(model, relu, price=price) as run:
        simulated = model(x)
    with torch.no_grad(), faster(model, relu, price=price, switch=False):
        torch.testing.assert_close(model(x), simulated)
    assert run.flops.saved > 0
    with pytest.raises(SettingError, match="give price="):
        faster(model, relu)
    with pytest.raises(SettingError, match='scope="relu"'):
        faster(model, exprune.calibrate(model, batches), price=price)
    with pytest.raises(SettingError, match="goes with a calibration"):
        faster(model, find_sites(model, x), None, price=price)
