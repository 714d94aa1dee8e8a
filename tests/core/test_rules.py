"""Compares rules that choose inputs, or neurons by their gate, with slow loops that choose, sum and count."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import (
    Cats,
    Chess,
    ExPrune,
    InputRule,
    Recorder,
    RSparse,
    SettingError,
    Site,
    SiteStatistics,
    Teal,
    TopK,
    Wina,
    find_sites,
    select_sites,
)
from exprune.core.calibration.histogram import NeuronHistogram, weighed_quantile
from exprune.core.heuristics.teal import block_of
from tests.core.networks import by_name
from tests.core.test_input_order import CASES, block

Statistics = dict[str, SiteStatistics]
RANK = 2


class SwiGLU(nn.Module):
    """A stem, a layer without an activation, and a gated feed-forward layer."""

    def __init__(self, factor_first: bool = False) -> None:
        super().__init__()
        self.factor_first = factor_first
        self.stem, self.mix = nn.Linear(3, 8), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.tanh(self.stem(x)))
        if self.factor_first:
            return self.down(self.up(x) * F.silu(self.gate(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 8), nn.Linear(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


def network(kind: type[nn.Module], seed: int) -> tuple[nn.Module, Tensor, list[Site], Statistics]:
    """Return a network, 120 rows, all of its layers as sites, and the statistics measured on those rows."""
    torch.manual_seed(seed)
    model = kind().double().eval()
    x = torch.randn(120, 3, dtype=torch.float64)
    sites = select_sites(find_sites(model, x), None, "all")
    with torch.no_grad(), Recorder(sites, (1,), {site.name: "input" for site in sites}) as recorder:
        model(x)
    gradients = torch.Generator().manual_seed(seed)
    measured = {
        name: replace(of, gradient=torch.rand(of.slope.shape[1], generator=gradients, dtype=torch.float64))
        for name, of in recorder.statistics().items()
    }
    return model, x, sites, measured


class Loop:
    """Computes one layer after the other, row by row, and adds up the FLOPs.

    Args:
        chosen: function of a layer's name, its weights and a row's inputs. It returns which inputs are evaluated, the
            FLOPs of the choice, and the matrix that the other inputs go through (None: they are left out).
        dropped: function of a layer's name and its activation's outputs. It returns which outputs become 0 and the
            FLOPs of the decision.
    """

    def __init__(self, model: nn.Module, chosen: Callable, dropped: Callable) -> None:
        self.model, self.chosen, self.dropped, self.spent = model, chosen, dropped, 0

    def layer(self, name: str, x: list[float], neurons: list[bool] | None = None) -> list[float]:
        of = getattr(self.model, name)
        kept, cost, instead = self.chosen(name, of.weight.detach(), x)
        self.spent += cost
        out = []
        for j, row in enumerate(of.weight.tolist()):
            if neurons is not None and not neurons[j]:
                out.append(0.0)
                continue
            total = of.bias[j].item()
            for i, weight in enumerate(row):
                if kept[i]:
                    total += weight * x[i]
                    self.spent += 2 * (x[i] != 0)
                elif instead is not None:
                    total += float(instead[j, i]) * x[i]
            out.append(total)
        return out

    def active(self, name: str, x: list[float], activation: Callable[[float], float]) -> list[float]:
        values = [activation(z) for z in self.layer(name, x)]
        zero, cost = self.dropped(name, values)
        self.spent += cost
        return [0.0 if drop else value for value, drop in zip(values, zero, strict=True)]

    def row(self, x: list[float]) -> list[float]:
        if isinstance(self.model, MLP):
            x = self.active("first", x, lambda z: max(z, 0.0))
            return self.layer("last", self.active("second", x, lambda z: max(z, 0.0)))
        x = self.layer("mix", [math.tanh(z) for z in self.layer("stem", x)])  # no activation that is known
        gate = self.active("gate", x, lambda z: z / (1 + math.exp(-z)))
        factor = self.layer("up", x, [g != 0 for g in gate])
        return self.layer("down", [g * u for g, u in zip(gate, factor, strict=True)])


def everything(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, None]:
    return [True] * len(x), 0, None


def nothing(name: str, values: list[float]) -> tuple[list[bool], int]:
    return [False] * len(values), 0


def largest(scores: list[float], tau: float) -> list[bool]:
    count = round((1 - tau) * len(scores))
    kept = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    return [i in kept for i in range(len(scores))]


def selection(kept: list[bool]) -> int:
    """Floyd and Rivest's number of comparisons; where all inputs are kept nothing has to be selected."""
    n, k = len(kept), sum(kept)
    return 0 if k == n else n + min(k, n - k)


def references(sites: list[Site], measured: Statistics, tau: float) -> dict[str, tuple[InputRule, Callable, Callable]]:
    """Return the heuristic of every rule, and the :class:`Loop` that it is compared with."""
    by, teal, cats, chess = by_name(sites), Teal(tau, measured), Cats(tau, measured), Chess(tau, measured)

    def small(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, None]:
        return [abs(v) > teal.cut(by[name], tau) for v in x], len(x), None

    def top(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, None]:
        kept = largest([abs(v) for v in x], tau)
        return kept, selection(kept), None

    def wina(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, None]:
        kept = largest([abs(v) * float(weight[:, i].norm()) for i, v in enumerate(x)], tau)
        return kept, selection(kept) and len(x) + selection(kept), None

    def low_rank(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, Tensor]:
        kept, cost, _ = wina(name, weight, x)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        products = 2 * RANK * (weight.shape[0] + weight.shape[1])
        return kept, cost and cost + products, u[:, :RANK] * s[:RANK] @ v[:RANK]

    def below(rule: Cats) -> Callable:
        def dropped(name: str, values: list[float]) -> tuple[list[bool], int]:
            threshold = torch.as_tensor(rule.threshold(by[name], tau)).expand(len(values)).tolist()
            return [abs(v) <= t for v, t in zip(values, threshold, strict=True)], len(values)

        return dropped

    def mixed(name: str, weight: Tensor, x: list[float]) -> tuple[list[bool], int, None]:
        return small(name, weight, x) if name in ("stem", "mix") else everything(name, weight, x)

    return {
        "teal": (teal, small, nothing),
        "top_k": (TopK(tau), top, nothing),
        "wina": (Wina(tau), wina, nothing),
        "r_sparse": (RSparse(tau, RANK), low_rank, nothing),
        "cats": (cats, everything, below(cats)),
        "chess": (chess, mixed, below(chess)),
    }


@given(seed=st.integers(0, 30), tau=st.floats(0, 1))
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("kind", [SwiGLU, MLP])
@pytest.mark.parametrize("rule", ["teal", "top_k", "wina", "r_sparse", "cats", "chess"])
def test_outputs_and_flops_are_those_of_the_loop(rule: str, kind: type[nn.Module], seed: int, tau: float) -> None:
    model, x, sites, measured = network(kind, seed)
    heuristic, chosen, dropped = references(sites, measured, tau)[rule]
    x = x[:20]
    with torch.no_grad(), ExPrune(sites, heuristic) as run:
        out = model(x)
    loop = Loop(model, chosen, dropped)
    want = torch.tensor([loop.row(row) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    assert run.flops.pruned == loop.spent
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert run.flops.dense == sum(2 * layer.weight.numel() for layer in layers) * len(x)


@pytest.mark.parametrize("kind", [SwiGLU, MLP])
@pytest.mark.parametrize("rule", ["teal", "greedy", "top_k", "wina", "r_sparse", "cats", "chess"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_leaves_nothing_out_changes_nothing(rule: str, kind: type[nn.Module], dtype: torch.dtype) -> None:
    model, x, sites, measured = network(kind, 0)
    model, x = model.to(dtype), x.to(dtype)
    rules = {name: of[0] for name, of in references(sites, measured, 0.0).items()}
    rules["greedy"] = Teal(0.0, measured, "greedy")
    with torch.no_grad():
        want = model(x)
        with ExPrune(sites, rules[rule]) as run:
            assert torch.equal(model(x), want)
    assert sum(site.zero_terms for site in run.flops.sites) >= run.flops.dense - run.flops.pruned


@pytest.mark.parametrize("rule", [Cats, Chess])
def test_a_factor_that_comes_first_is_left_out_as_well(rule: type[Cats]) -> None:
    """The result and the FLOPs are the same in both orders, because a kernel computes the gate first in any case."""
    results = []
    for factor_first in (False, True):
        model, x, sites, measured = network(lambda first=factor_first: SwiGLU(first), 3)
        with torch.no_grad(), ExPrune(sites, rule(0.5, measured)) as run:
            results.append((model(x), run.flops.pruned))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("rule", [Cats, Chess])
def test_the_factor_and_the_reader_need_not_be_sites(rule: type[Cats]) -> None:
    model, x, sites, measured = network(SwiGLU, 1)
    results = []
    for some in (["gate", "up", "down"], ["gate"]):
        with torch.no_grad(), ExPrune(select_sites(sites, some), rule(0.5, measured)) as run:
            results.append((model(x), run.flops.pruned))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] < run.flops.dense


@pytest.mark.parametrize(("conv", "options"), CASES)
@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_a_full_rank_leaves_nothing_out(conv: bool, options: dict, tau: float) -> None:
    """Convolutions, with a BatchNorm, a residual or a mask: the remaining inputs go through the low-rank weights."""
    model, x, site = block(conv, **options)
    with torch.no_grad():
        want = model(x)
        with ExPrune([site], RSparse(tau, 99)) as run:
            torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-6)
    inputs = 81 if conv else 9
    (count,) = run.flops.sites
    rows, kept, patch = count.outputs // 4, round((1 - tau) * 9), 18 if conv else 0
    assert count.by_input.ranking == rows * (9 * patch + 9 + 9 + min(kept, 9 - kept) + 2 * 4 * (inputs + 4))


def test_statistics_of_outputs() -> None:
    model, x, _, measured = network(SwiGLU, 0)
    with torch.no_grad():
        hidden = model.mix(torch.tanh(model.stem(x)))
        gate, factor = F.silu(model.gate(hidden)).abs(), model.up(hidden)
    rms = factor.square().mean(0).sqrt()
    of = measured["gate"]
    torch.testing.assert_close(of.factor, rms)
    torch.testing.assert_close(measured["up"].gate, gate.square().mean(0).sqrt())
    assert measured["mix"].outputs is None and measured["up"].weighed is None and of.gate is None
    for found, values in ((of.outputs, gate), (of.weighed, gate * rms)):
        values = sorted(values.flatten().tolist())
        for step in range(0, 1025, 64):
            true = values[max(math.ceil(step / 1024 * len(values)), 1) - 1]
            assert true * 0.94 <= found[step] <= true * 1.063


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=20), st.floats(0, 1))
def test_a_weighed_quantile_counts_each_value_so_often(pairs: list[tuple[int, int]], share: float) -> None:
    values, weights = zip(*pairs, strict=True)
    plain = sorted(value for value, weight in pairs for _ in range(weight))
    found = weighed_quantile(torch.tensor(values), torch.tensor(weights), share)
    assert found == plain[max(math.ceil(share * len(plain)), 1) - 1]


def test_rows_without_a_number_are_not_counted() -> None:
    histogram = NeuronHistogram()
    histogram.add(torch.tensor([[1.0, math.nan], [math.inf, 1.0], [0.0, 2.0]]))
    assert histogram.counts.sum() == 2
    assert histogram.quantiles(2).tolist() == [0, 0, pytest.approx(2 * 17 / 16)]


@given(seed=st.integers(0, 30), tau=st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_a_block_is_divided_at_the_least_error(seed: int, tau: float) -> None:
    """TEAL's steps, each of 1/64 of the inputs of the layer that adds the least error per FLOP, end the same way."""
    _, _, sites, measured = network(SwiGLU, seed)
    block = [replace(site, layer=replace(site.layer, name=f"layers.0.{site.name}")) for site in sites]
    measured = {f"layers.0.{name}": of for name, of in measured.items()}
    assert {block_of(site) for site in block} == {"layers.0"}
    flops = {site.name: site.dense_flops * site.outputs for site in block}
    left, spent = dict.fromkeys(flops, 0), 0.0

    def added(site: Site) -> float:
        """Return the expected loss of the next step for each FLOP that it saves."""
        of, at = measured[site.name], left[site.name]
        weight = site.weight.detach()
        price = sum(g * float(row.square().mean()) for g, row in zip(of.gradient.tolist(), weight, strict=True))
        return price * float(of.magnitudes[at + 1 : at + 17].square().mean()) / flops[site.name]

    while spent < tau * sum(flops.values()):
        best = min((site for site in block if left[site.name] < 1024), key=added)
        left[best.name] += 16
        spent += flops[best.name] / 64
    heuristic = Teal(tau, measured, "greedy")
    choices = heuristic.choices(block, dict.fromkeys(flops, tau))
    for site in block:
        sizes = measured[site.name].magnitudes
        kept = choices[site.name].keep(sizes[None, 1:].square().float(), torch.ones(1))
        assert int((~kept).sum()) == pytest.approx(left[site.name], abs=48)


def test_blocks_are_told_by_the_first_number() -> None:
    _, _, sites, _ = network(MLP, 0)
    names = {"model.layers.3.mlp.up_proj": "model.layers.3", "convolutions.0.nn.2": "convolutions.0", "head": "head"}
    for name, of in names.items():
        assert block_of(replace(sites[0], layer=replace(sites[0].layer, name=name))) == of


def test_bad_input_is_said_in_one_line() -> None:
    model, x, sites, measured = network(SwiGLU, 0)
    without = {name: replace(of, gradient=None, outputs=None, factor=None) for name, of in measured.items()}
    alone = {"gate": replace(measured["gate"], factor=None)}
    _, _, site = block(True)
    for make, line in (
        (lambda: Teal(0.5, divide="best"), "divide='best' of Teal: must be even or greedy"),
        (lambda: TopK(1.5), r"tau=1.5 of TopK: must be a number in \[0, 1\]"),
        (lambda: RSparse(0.5, 0), "rank=0 of RSparse: must be a whole number, at least 1"),
        (lambda: ExPrune([site], Cats(0.5)), "layer: is a convolution: Cats is a rule for Linear layers"),
        (
            lambda: ExPrune(sites, Teal(0.5)).__enter__(),
            "Teal: no magnitudes of stem's inputs; calibrate with",
        ),
        (
            lambda: ExPrune(sites, Teal(0.5, without, "greedy")).__enter__(),
            "Teal: the statistics of down have no gradients, which divide",
        ),
        (
            lambda: ExPrune(sites, Cats(0.5, without)).__enter__(),
            "Cats: the outputs of gate were not measured; calibrate with ord",
        ),
        (
            lambda: ExPrune(select_sites(sites, "gate"), Chess(0.5, alone)).__enter__(),
            "Chess: the outputs of up, which those of gate multiply, were not measured; calibrate with scope=all",
        ),
    ):
        with pytest.raises(SettingError, match=line):
            make()
    with torch.no_grad(), ExPrune(sites, Cats(0.0)):  # where nothing is left out, nothing needs to be known
        model(x)
