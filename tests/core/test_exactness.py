"""The pruned forward pass against the brute force: the same neurons, the same zeros, the same FLOPs."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import ExPrune, Heuristic, Prefix, Site, SiteFlops, StatsTest, Threshold, find_sites
from exprune.core.partial_sums import parts
from exprune.core.simulation import blocks
from tests.core.brute_force import Expected, Gap, brute_force, conv_terms, linear_terms, stats_gap, threshold_gap
from tests.core.networks import by_name, counts, scramble

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@dataclass(frozen=True)
class Case:
    """One layer before a ReLU."""

    kind: str = "conv2d"
    terms: int = 5
    outputs: int = 3
    leading: tuple[int, ...] = (2,)
    size: tuple[int, int] = (5, 4)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    padding_mode: str = "zeros"
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    norm: bool = False
    join: str = "none"
    seed: int = 0
    dtype: torch.dtype = torch.float64


class Layer(nn.Module):
    """A stem, then the layer under test, BatchNorm, residual, ReLU."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.join = case.join
        if case.kind == "linear":
            self.stem = nn.Linear(2, case.terms)
            self.layer = nn.Linear(case.terms, case.outputs, bias=case.bias)
        else:
            self.stem = nn.Conv2d(2, case.terms, 1)
            self.layer = nn.Conv2d(
                case.terms,
                case.outputs,
                case.kernel,
                stride=case.stride,
                padding=case.padding,
                dilation=case.dilation,
                bias=case.bias,
                padding_mode=case.padding_mode,
            )
        norm = nn.BatchNorm1d if case.kind == "linear" else nn.BatchNorm2d
        self.norm = norm(case.outputs) if case.norm else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        residual = residual.clone()
        z = self.norm(self.layer(self.stem(x)))
        if self.join == "z + residual":
            z = z + residual
        elif self.join == "residual + z":
            z = residual + z
        elif self.join == "z += residual":
            z += residual
        elif self.join == "residual += z":
            residual += z
            z = residual
        elif self.join == "torch.add":
            z = torch.add(residual, other=z)
        elif self.join == "twice":
            z = z + residual + residual.flip(-1)
        else:
            assert self.join == "none"
        return F.relu(z)


def build(case: Case) -> tuple[Layer, Tensor, Tensor]:
    """The layer of a case, an input, and a residual."""
    torch.manual_seed(case.seed)
    model = scramble(Layer(case).to(case.dtype), case.seed)
    x = torch.randn(*case.leading, 2, *(() if case.kind == "linear" else case.size), dtype=case.dtype)
    with torch.no_grad():
        residual = torch.randn_like(model.layer(model.stem(x)))
    return model, x, residual


def expect(
    case: Case,
    model: Layer,
    x: Tensor,
    residual: Tensor,
    heuristic: Heuristic,
    gap: Gap,
    order: Iterable[int] | None,
    gain_ratio: float | None = None,
) -> Expected:
    """The brute force on that layer; with a gain_ratio, on what its static mask left."""
    layer = model.layer
    with torch.no_grad():
        hidden = model.stem(x)
    if case.kind == "linear":
        terms = linear_terms(hidden, layer.weight)
    else:
        images = hidden if hidden.dim() == 4 else hidden[None]
        padding = case.padding
        if case.padding_mode != "zeros":  # the padded pixels are data; PyTorch pads by this very function
            vertical, horizontal = padding
            images = F.pad(images, (horizontal, horizontal, vertical, vertical), mode=case.padding_mode)
            padding = (0, 0)
        terms = conv_terms(images, layer.weight, case.stride, padding, case.dilation)
        terms = terms if hidden.dim() == 4 else terms[0]
    per_channel = (-1,) if case.kind == "linear" else (-1, 1, 1)
    a = torch.ones(case.outputs, dtype=torch.float64)
    b = torch.zeros(case.outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    if case.norm:
        norm = model.norm
        a = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        b = (b - norm.running_mean.double()) * a + norm.bias.detach().double()
    shift = b.view(per_channel)
    if case.join == "twice":
        shift = shift + residual.double() + residual.double().flip(-1)
    elif case.join != "none":
        shift = shift + residual.double()
    overhead = (lambda n: 2 * n + 6) if isinstance(heuristic, StatsTest) else (lambda n: 1)
    k = 1 if case.kind == "linear" else case.kernel[0] * case.kernel[1]
    if gain_ratio is None:
        return brute_force(terms, a.view(per_channel), shift, k, heuristic.stages, gap, overhead)
    left = layer.weight_mask.reshape(case.outputs, case.terms, -1).sum(-1)
    left = left if case.kind == "linear" else left[:, None, None]
    return brute_force(terms, a.view(per_channel), shift, k, heuristic.stages, gap, overhead, left, gain_ratio)


def run_pruned(model: nn.Module, heuristic: Heuristic, *inputs: Tensor) -> tuple[Tensor, Tensor, ExPrune]:
    """The dense output, the pruned output, and the run."""
    sites = find_sites(model, *inputs)
    assert [site.name for site in sites if site.eligible] == ["layer"]
    with torch.no_grad():
        dense = model(*inputs)
        with ExPrune(sites, heuristic) as run:
            pruned = model(*inputs)
    return dense, pruned, run


def assert_counts(count: SiteFlops, expected: Expected) -> None:
    """Every count of the site equals the brute force's."""
    assert count.outputs == expected.stopped.numel()
    assert count.stopped == expected.pruned_at[: len(count.stages)] and not any(expected.pruned_at[len(count.stages) :])
    assert count.pruned == int(expected.stopped.sum())
    assert int(count.negative) == expected.negative
    assert int(count.wrong) == expected.wrong
    assert count.dense_flops == expected.dense_flops
    assert count.pruned_flops == expected.pruned_flops


def stem_flops(model: Layer, x: Tensor) -> int:
    """2 FLOPs per multiply-add of the stem, with 1 x 1 kernels."""
    return 2 * model.stem.weight.numel() * (x.numel() // 2)


def check(case: Case, heuristic: Heuristic, gap: Gap) -> Expected:
    """The method on one case, compared exactly."""
    model, x, residual = build(case)
    expected = expect(case, model, x, residual, heuristic, gap, None)
    dense, pruned, run = run_pruned(model, heuristic, x, residual)
    wanted = torch.where(expected.stopped, 0.0, dense)
    assert torch.equal(pruned == 0, wanted == 0)
    if len(heuristic.stages) == 1:
        assert torch.equal(pruned, wanted)
    else:  # the layer's output is then made of partial sums
        torch.testing.assert_close(pruned, wanted, rtol=1e-12, atol=1e-12)
    (count,) = run.flops.sites
    assert_counts(count, expected)
    assert run.flops.dense == stem_flops(model, x) + expected.dense_flops
    assert run.flops.pruned == stem_flops(model, x) + expected.pruned_flops
    return expected


HEURISTICS = [(Threshold, threshold_gap, -0.05), (StatsTest, stats_gap, 0.3)]
JOINS = ["none", "z + residual", "residual + z", "z += residual", "residual += z", "torch.add", "twice"]
LAYERS = [
    Case("linear"),
    Case("linear", bias=False),
    Case("linear", leading=()),
    Case("linear", leading=(2, 3)),
    Case("linear", leading=(4,), norm=True, bias=False),
    Case("linear", leading=(4,), norm=True, join="z + residual"),
    *(Case("linear", join=join) for join in JOINS[1:]),
    Case(),
    Case(bias=False),
    Case(leading=()),
    Case(norm=True, bias=False, padding=(1, 1)),
    Case(norm=True, bias=True),
    Case(stride=(2, 2), padding=(1, 1)),
    Case(stride=(1, 2), padding=(0, 2)),
    Case(dilation=(2, 1), padding=(2, 0)),
    Case(dilation=(2, 2), padding="same"),
    Case(kernel=(2, 4), padding="same"),
    Case(kernel=(4, 2), padding="same", dilation=(1, 3)),
    Case(kernel=(2, 2), padding="valid", stride=(2, 1)),
    Case(kernel=(1, 1)),
    Case(kernel=(1, 3), padding=(0, 1)),
    Case(kernel=(3, 2), padding=(1, 2), stride=(3, 2)),
    Case(padding=(1, 2), padding_mode="circular"),
    Case(padding=(1, 1), padding_mode="reflect", stride=(2, 1)),
    *(Case(join=join, norm=join != "torch.add", padding=(1, 1)) for join in JOINS[1:]),
]


@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["Threshold", "StatsTest"])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.kind}{LAYERS.index(case)}")
def test_layer_matches_brute_force(case: Case, kind: type[Heuristic], gap: Gap, tau: float) -> None:
    check(case, kind(tau, n=3), gap(tau))


@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["Threshold", "StatsTest"])
@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_every_n_matches_brute_force(layer: str, n: int, kind: type[Heuristic], gap: Gap, tau: float) -> None:
    case = Case(layer, terms=6, outputs=6, leading=(6,), size=(3, 3), norm=True, join="z += residual")
    expected = check(case, kind(tau, n=n), gap(tau))
    assert 0 < expected.stopped.sum() < expected.stopped.numel()  # both kinds of neurons were there
    assert expected.negative


@pytest.mark.parametrize("case", [Case("linear", leading=(90,), terms=9, outputs=6), Case(terms=9, leading=(6,))])
@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["Threshold", "StatsTest"])
def test_wrongly_pruned_neurons_are_counted(case: Case, kind: type[Heuristic], gap: Gap, tau: float) -> None:
    expected = check(case, kind(tau, n=2), gap(tau))
    assert 0 < expected.wrong < expected.stopped.sum()
    assert expected.stopped.sum() < expected.stopped.numel()


@pytest.mark.parametrize("alpha", [1e-12, 0.01, 0.25, 0.5])
def test_every_alpha_matches_brute_force(alpha: float) -> None:
    check(Case("linear", leading=(20,), terms=8, join="z + residual"), StatsTest(alpha, n=4), stats_gap(alpha))


@pytest.mark.parametrize("case", [LAYERS[5], LAYERS[15], LAYERS[-1]], ids=lambda case: f"{LAYERS.index(case)}")
@pytest.mark.parametrize("n", [2, 4, 5])
def test_a_finite_population_matches_brute_force(case: Case, n: int) -> None:
    """The estimate is less uncertain than in the published test, so that other neurons stop."""
    case = Case(**{**case.__dict__, "terms": 6, "leading": (30,)})
    finite = check(case, StatsTest(0.2, n=n, finite_population=True), stats_gap(0.2, finite_population=True))
    assert not torch.equal(finite.stopped, check(case, StatsTest(0.2, n=n), stats_gap(0.2)).stopped)


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.5])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_without_variance_the_sign_of_the_mean_decides(layer: str, norm: bool, alpha: float) -> None:
    """All terms of a neuron are exactly equal, also in floating point."""
    case = Case(layer, terms=8, outputs=4, kernel=(2, 2), norm=norm)
    model, x, residual = build(case)
    with torch.no_grad():
        model.stem.weight.fill_(1.0)
        model.stem.bias.zero_()
        x = x.mul(4).round().div(8)
        model.layer.weight.copy_(torch.tensor([2.0, -2.0, 0.5, 0.0]).view(4, *[1] * (model.layer.weight.dim() - 1)))
        model.layer.bias.copy_(torch.tensor([0.25, 0.25, -0.25, -0.125]))
    expected = expect(case, model, x, residual, StatsTest(alpha, n=4), stats_gap(alpha), None)
    dense, pruned, run = run_pruned(model, StatsTest(alpha, n=4), x, residual)
    assert torch.equal(pruned, torch.where(expected.stopped, 0.0, dense))
    assert_counts(run.flops.sites[0], expected)
    assert 0 < expected.stopped.sum() < expected.stopped.numel()


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
def test_neurons_whose_terms_are_all_zero(bias: float) -> None:
    """m = b / N and v = 0: only a negative bias stops them."""
    model, x, residual = build(Case("linear"))
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.fill_(bias)
    _, pruned, run = run_pruned(model, StatsTest(0.5, n=3), x, residual)
    assert torch.equal(pruned, torch.full_like(pruned, max(bias, 0.0)))
    assert run.flops.sites[0].pruned == (pruned.numel() if bias < 0 else 0)


@pytest.mark.parametrize("case", [c for c in LAYERS if c.norm or c.join != "none"][:8] + LAYERS[-3:])
@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["Threshold", "StatsTest"])
def test_float32_differs_only_at_the_bound(case: Case, kind: type[Heuristic], gap: Gap, tau: float) -> None:
    case = Case(**{**case.__dict__, "dtype": torch.float32, "terms": 12})
    model, x, residual = build(case)
    expected = expect(case, model, x, residual, kind(tau, n=6), gap(tau), None)
    dense, pruned, run = run_pruned(model, kind(tau, n=6), x, residual)
    clear = expected.nearest > 1e-4
    assert clear.double().mean() > 0.9
    assert torch.equal(pruned[clear], torch.where(expected.stopped, 0.0, dense)[clear])
    assert torch.equal(pruned[pruned != 0], dense[pruned != 0])
    assert abs(run.flops.sites[0].pruned - int(expected.stopped.sum())) <= int((~clear).sum())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any small layer."""
    kind = draw(st.sampled_from(["linear", "conv2d"]))
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    norm = draw(st.booleans())
    rest = {
        "terms": draw(st.integers(2, 6)),
        "outputs": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "norm": norm,
        "join": draw(st.sampled_from(JOINS)),
        "seed": draw(st.integers(0, 10**6)),
    }
    if kind == "linear":
        leading = [(1,), (3,)] if norm else [(), (1,), (3,), (2, 2)]
        return Case("linear", leading=draw(st.sampled_from(leading)), **rest)
    kernel, dilation = draw(pair(1, 3)), draw(pair(1, 2))
    padding = draw(st.one_of(pair(0, 2), st.sampled_from(["same", "valid"])))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return Case(
        "conv2d",
        leading=draw(st.sampled_from([(1,), (2,)] if norm else [(), (1,), (2,)])),
        size=(draw(st.integers(reach[0], 5)), draw(st.integers(reach[1], 5))),
        kernel=kernel,
        stride=(1, 1) if padding == "same" else draw(pair(1, 2)),
        padding=padding,
        dilation=dilation,
        **rest,
    )


@given(case=cases(), data=st.data())
@settings(deadline=None, max_examples=300, database=None, derandomize=True)
def test_any_layer_matches_brute_force(case: Case, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, case.terms - 1), label="n")
    if data.draw(st.booleans(), label="StatsTest"):
        alpha = data.draw(st.floats(0, 0.5, allow_subnormal=False), label="alpha")
        check(case, StatsTest(alpha, n=n), stats_gap(alpha))
    else:
        tau = data.draw(st.floats(-2, 0), label="T")
        check(case, Threshold(tau, n=n), threshold_gap(tau))


class StagedThreshold(Threshold):
    """Threshold after 2, 4 and 6 terms."""

    def __init__(self, tau: float) -> None:
        super().__init__(tau)
        self.stages = (2, 4, 6)


class StagedStatsTest(StatsTest):
    """StatsTest after 2, 4 and 6 terms."""

    def __init__(self, tau: float) -> None:
        super().__init__(tau)
        self.stages = (2, 4, 6)


@pytest.mark.parametrize("terms", [3, 5, 6, 7, 9])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize(
    ("heuristic", "gap"),
    [(StagedThreshold(-0.1), threshold_gap(-0.1)), (StagedStatsTest(0.1), stats_gap(0.1))],
    ids=["Threshold", "StatsTest"],
)
def test_stages_match_brute_force(heuristic: Heuristic, gap: Gap, layer: str, terms: int) -> None:
    case = Case(
        layer, terms=terms, outputs=5, leading=(40,), size=(3, 3), kernel=(2, 1), bias=False, join="z += residual"
    )
    expected = check(case, heuristic, gap)
    assert len(expected.pruned_at) == sum(n < terms for n in (2, 4, 6))
    assert all(expected.pruned_at)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.kind}{LAYERS.index(case)}")
def test_stages_of_any_layer_match_brute_force_in_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer in parts is computed in chunks of rows, here of one row."""
    monkeypatch.setattr(parts, "_BLOCK", 1)
    check(replace(case, terms=7), StagedThreshold(-0.1), threshold_gap(-0.1))


def test_a_batch_may_be_empty() -> None:
    model, x, residual = build(Case(terms=7))
    _, pruned, run = run_pruned(model, StagedThreshold(-0.1), x[:0], residual[:0])
    assert pruned.shape == residual[:0].shape
    assert run.flops.sites[0].outputs == 0


class FromBehind(StagedThreshold):
    """The same with the model's last terms first."""

    def order(self, site: Site) -> Tensor:
        return torch.arange(site.terms).flip(0)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize("leading", [(5,), (4, 3)])
def test_an_order_is_that_of_a_layer_with_its_channels_in_it(
    leading: tuple[int, ...], layer: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_BLOCK", block)
    case = Case(layer, terms=7, outputs=5, leading=leading if layer == "linear" else leading[:1])
    model, x, residual = build(case)
    _, pruned, run = run_pruned(model, FromBehind(-0.1), x, residual)
    with torch.no_grad():
        for values in (*model.stem.parameters(), model.layer.weight.transpose(0, 1)):
            values.copy_(values.flip(0))
    _, expected, in_order = run_pruned(model, StagedThreshold(-0.1), x, residual)
    torch.testing.assert_close(pruned, expected)
    assert torch.equal(pruned == 0, expected == 0)
    assert counts(run) == counts(in_order)
    assert any(run.flops.sites[0].pruned_at)


class Twice(nn.Module):
    """One convolution is applied to two inputs before the first ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 1)
        self.conv = nn.Conv2d(7, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, second = self.conv(x), self.conv(x.flip(0) - 0.5)
        return torch.cat([F.relu(first), F.relu(second)], 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_is_kept_from_call_to_call_is_not_mistaken(mode: Callable[[], AbstractContextManager]) -> None:
    """Batches of any size in one context give the same as each in its own, also after weights have changed in place."""
    torch.manual_seed(0)
    model = Twice().double().eval()
    nn.init.normal_(model.conv.weight)
    batches = [torch.randn(size, 3, 6, 6, dtype=torch.float64) for size in (4, 4, 3, 4, 4)]
    passes = []
    with ExPrune(find_sites(model, batches[0]), FromBehind(-0.1)):
        for index, x in enumerate(batches):
            with mode() if index % 2 else torch.no_grad():
                passes.append((model.conv.weight.detach().clone(), x, model(x)))
            with torch.no_grad():
                model.conv.weight.mul_(-1.5)
    for weight, x, out in passes:
        alone = []
        with torch.no_grad():
            model.conv.weight.copy_(weight)
            features = model.stem(x)
        for one in (features, features.flip(0) - 0.5):
            with torch.no_grad(), ExPrune(find_sites(model, x), FromBehind(-0.1)) as run:
                alone.append(F.relu(model.conv(one)))
            assert all(run.flops.sites[0].pruned_at)
        assert torch.equal(out, torch.cat(alone, 1))


def test_a_stopped_neuron_is_not_stopped_again() -> None:
    """A heuristic that stops everything at every stage: all neurons stop at the first one, and pay for one test."""

    class Everything(Heuristic):
        def __init__(self) -> None:
            super().__init__()
            self.stages = (2, 4, 6)

        def stop(self, seen: Prefix) -> Tensor:
            return torch.ones_like(seen.s, dtype=torch.bool)

        def overhead(self, stage: int, site: Site) -> int:
            return (3, 50, 700)[stage]

    model, x, residual = build(Case("linear", terms=9))
    _, pruned, run = run_pruned(model, Everything(), x, residual)
    (count,) = run.flops.sites
    assert not pruned.any()
    assert [int(p) for p in count.pruned_at] == [pruned.numel(), 0, 0]
    assert count.pruned_flops == pruned.numel() * (3 + 2 * 2)


@pytest.mark.parametrize("heuristic", [Threshold(-0.1, n=4), StagedStatsTest(0.2)], ids=["Threshold", "StatsTest"])
def test_what_a_heuristic_is_told(heuristic: Heuristic) -> None:
    """s, q and r are a*sum t, a^2*sum t^2 and b + r, at every stage."""
    told: list[Prefix] = []

    class Spy(type(heuristic)):
        def stop(self, seen: Prefix) -> Tensor:
            told.append(seen)
            return super().stop(seen)

    spy = Spy.__new__(Spy)
    spy.__dict__.update(heuristic.__dict__)
    case = Case(terms=7, norm=True, join="z + residual")
    model, x, residual = build(case)
    run_pruned(model, spy, x, residual)
    norm = model.norm
    a = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(-1, 1, 1)
    b = ((model.layer.bias - norm.running_mean) * a.flatten() + norm.bias).detach().view(-1, 1, 1)
    with torch.no_grad():
        terms = conv_terms(model.stem(x), model.layer.weight, (1, 1), (0, 0), (1, 1))
    assert [(seen.stage, seen.n, seen.terms) for seen in told] == [(k, n, 7) for k, n in enumerate(heuristic.stages)]
    for seen in told:
        assert seen.site.name == "layer"
        assert seen.tau == heuristic.tau
        torch.testing.assert_close(seen.s, a * terms[..., : seen.n].sum(-1))
        torch.testing.assert_close(seen.r + torch.zeros_like(seen.s), b + residual)
        if heuristic.needs_squares:
            torch.testing.assert_close(seen.q, a**2 * terms[..., : seen.n].square().sum(-1))
        else:
            assert seen.q is None


def test_what_a_heuristic_keeps_is_of_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_CHUNK", 0)  # a row at a time
    monkeypatch.setattr(parts, "_BLOCK", 1)
    seen_before = []

    class Counting(StagedThreshold):
        def stop(self, seen: Prefix) -> Tensor:
            seen_before.append(seen.kept.get("times", 0))
            seen.kept["times"] = seen_before[-1] + 1
            return super().stop(seen)

    model, x, residual = build(Case("linear", terms=7, leading=(4,)))
    with torch.no_grad(), ExPrune(find_sites(model, x, residual), Counting(-0.1)):
        for _ in range(2):
            model(x, residual)
    assert seen_before == 2 * list(range(4 * 3))  # rows and stages


class Flattened(nn.Module):
    """A classifier that reads a feature map, where neighbouring terms come from one channel."""

    def __init__(self, channels: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.stem = nn.Conv2d(2, channels, 1)
        self.layer = nn.Linear(channels * 6, 4)

    def hidden(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return {
            "flatten": lambda: torch.flatten(x, 1),
            "view": lambda: x.view(x.size(0), -1),
            "reshape and dropout": lambda: F.dropout(x.reshape(len(x), -1), 0.5, self.training),
        }[self.spelling]()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(self.hidden(x)))


@pytest.mark.parametrize("spelling", ["flatten", "view", "reshape and dropout"])
@pytest.mark.parametrize("channels", [2, 5, 9])
@pytest.mark.parametrize(("kind", "gap", "tau"), HEURISTICS, ids=["Threshold", "StatsTest"])
def test_flattened_feature_map(kind: type[Heuristic], gap: Gap, tau: float, channels: int, spelling: str) -> None:
    torch.manual_seed(1)
    model = Flattened(channels, spelling).double().eval()
    x = torch.randn(5, 2, 2, 3, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert (site.terms, site.spatial) == (channels * 6, 6)
    order = site.order()
    assert sorted(order.tolist()) == list(range(site.terms))
    first = order[:channels]
    assert len({int(c) // 6 for c in first}) == channels  # each from another channel,
    assert len({int(c) % 6 for c in first}) == min(channels, 6)  # and position, as far as there are
    with torch.no_grad():
        terms = linear_terms(model.hidden(x), model.layer.weight)[..., order]
    heuristic = kind(tau, n=7)
    overhead = 2 * 7 + 6 if kind is StatsTest else 1
    expected = brute_force(terms, 1.0, model.layer.bias.detach(), 1, (7,), gap(tau), lambda n: overhead)
    dense, pruned, run = run_pruned(model, heuristic, x)
    assert torch.equal(pruned, torch.where(expected.stopped, 0.0, dense))
    assert_counts(run.flops.sites[0], expected)


def test_other_sites_take_their_terms_as_they_stand() -> None:
    model, x, residual = build(Case())
    site = by_name(find_sites(model, x, residual))["layer"]
    assert site.spatial == 1
    assert site.order() is None


def test_known_numbers() -> None:
    """One neuron by hand: terms 1, -3, 2, 5; bias -4; n = 2."""
    layer = nn.Linear(4, 1)
    model = nn.Sequential(nn.Linear(1, 4, bias=False), layer, nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-3.0], [2.0], [5.0]]))
        layer.weight.fill_(1.0)
        layer.bias.fill_(-4.0)
    x = torch.ones(1, 1, dtype=torch.float64)
    sites = find_sites(model, x)
    # s = -2, q = 10, m = -1 - 1 = -2, v = 5 - 1 = 4, statistic = -2 / sqrt(2) = -1.414; Phi(-1.414) = 0.0786
    for heuristic, stops, overhead in (
        (StatsTest(0.0787, n=2), True, 10),
        (StatsTest(0.0786, n=2), False, 10),
        (Threshold(-1.99, n=2), True, 1),
        (Threshold(-2.0, n=2), False, 1),
    ):
        with torch.no_grad(), ExPrune(sites, heuristic) as run:
            out = model(x)
        assert out.item() == (0.0 if stops else 1.0)
        (count,) = run.flops.sites
        assert (count.pruned, int(count.wrong), int(count.negative)) == (stops, stops, 0)
        assert count.pruned_flops == overhead + (4 if stops else 8)
        assert run.flops.dense == 16
