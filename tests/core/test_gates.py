"""Gated products: what multiplies, what reads, and what zeros save."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import (
    ExPrune,
    Optimal,
    Recorder,
    find_sites,
    select_sites,
)
from tests.core.activations import Chosen, Gated, QuickGELU, Rough, batch, by_counts, layer_of
from tests.core.networks import by_name

GATED: dict[str, Callable[[Chosen, Tensor], Tensor]] = {
    "gate, up": lambda m, h: m.down(F.silu(m.gate(h)) * m.up(h)),
    "up, gate": lambda m, h: m.down(m.up(h) * F.silu(m.gate(h))),
    "gate times what came first": lambda m, h: (lambda up: m.down(F.silu(m.gate(h)) * up))(m.up(h)),
    "what came first times gate": lambda m, h: (lambda up: m.down(up * F.silu(m.gate(h))))(m.up(h)),
    "torch.mul": lambda m, h: m.down(torch.mul(F.gelu(m.gate(h)), m.up(h))),
    "by keyword": lambda m, h: m.down(torch.mul(input=m.up(h), other=F.gelu(m.gate(h)))),
    "scaled afterwards": lambda m, h: m.down(F.silu(m.gate(h)) * m.up(h) * 0.5),
    "divided by": lambda m, h: m.down(F.silu(m.gate(h)) / m.up(h)),
    "a module": lambda m, h: m.down(m.act(m.gate(h)) * m.up(h)),
}


@pytest.mark.parametrize("form", GATED)
def test_the_layer_that_an_activation_is_multiplied_with(form: str) -> None:
    model = Chosen(GATED[form])
    model.act = QuickGELU()
    found = by_name(find_sites(model, batch()))
    gate = found["gate"]
    assert gate.eligible
    assert (gate.gated, gate.reader) == ("up", "down")
    assert gate.spared == {"up": 2 * 9, "down": 2 * 3}
    assert not found["up"].eligible
    assert found["up"].outcomes == ("prediction",)
    assert (found["down"].gated, found["down"].reader, found["down"].spared) == (None, None, {})


def halves(m: Chosen, h: Tensor, function: str = "chunk") -> tuple[Tensor, Tensor]:
    z = m.both(h)
    if function == "chunk":
        return z.chunk(2, dim=-1)
    if function == "split":
        return z.split(6, -1)
    return torch.split(z, [6, 6], dim=1)


@pytest.mark.parametrize("function", ["chunk", "split", "sizes"])
@pytest.mark.parametrize("first", [True, False])
def test_a_gate_and_what_it_multiplies_in_one_matrix(function: str, first: bool) -> None:
    def rest(m: Chosen, h: Tensor) -> Tensor:
        gate, up = halves(m, h, function)[:: 1 if first else -1]
        return m.down(up * F.silu(gate))

    found = by_name(find_sites(Chosen(rest), batch()))
    gate, up = ("both[0:6]", "both[6:12]") if first else ("both[6:12]", "both[0:6]")
    site = found[gate]
    assert site.eligible
    assert (site.gated, site.reader, site.spared) == (up, "down", {up: 18, "down": 6})
    assert (site.whole, site.rows, site.outputs, site.terms) == ("both", (0, 6) if first else (6, 12), 6, 9)
    assert site.weight is not None
    assert site.weight.shape == (6, 9)
    assert not found["both"].eligible
    eligible = [s.name for s in select_sites(list(found.values()), None, "all") if s.eligible]
    assert set(eligible) == {"stem", "both[0:6]", "both[6:12]", "down"}  # no neuron twice


def test_what_is_split_without_an_activation_stays_whole() -> None:
    found = by_name(find_sites(Chosen(lambda m, h: m.down(torch.mul(*halves(m, h)))), batch()))
    assert not any("[" in name for name in found)


READERS: dict[str, tuple[Callable[[Chosen, Tensor], Any], str | None]] = {
    "a layer": (lambda m, a: m.down(a), "down"),
    "scaled": (lambda m, a: m.down(a * 3), "down"),
    "divided": (lambda m, a: m.down(a / 3), "down"),
    "squared": (lambda m, a: m.down(a.square()), "down"),
    "viewed": (lambda m, a: m.down(a.view(2, 3, 6)), "down"),
    "dropout": (lambda m, a: m.down(F.dropout(a, training=False)), "down"),
    "described": (lambda m, a: m.down(a.reshape(a.shape)), "down"),
    "a second reader": (lambda m, a: m.down(a) + a.sum(), None),
    "twice": (lambda m, a: m.down(a) + m.down(a), None),
    "shifted": (lambda m, a: m.down(a + 1), None),
    "a LayerNorm": (lambda m, a: m.down(F.layer_norm(a, (6,))), None),
    "another activation": (lambda m, a: m.down(torch.exp(a)), None),
    "divisor": (lambda m, a: m.down(1 / a), None),
    "exponent": (lambda m, a: m.down(2**a), None),
    "weight": (lambda m, a: F.linear(torch.ones(6), a), None),
}


@pytest.mark.parametrize("case", READERS)
def test_the_layer_that_reads_what_comes_of_it(case: str) -> None:
    read, reader = READERS[case]
    site = layer_of(Chosen(lambda m, h: read(m, F.gelu(m.layer(h)))), batch())
    assert site.eligible
    assert site.reader == reader
    assert site.spared == ({} if reader is None else {"down": 6})


@pytest.mark.parametrize(
    ("rest", "gated", "spared"),
    [
        (lambda m, h: (lambda a: m.down(a * m.up(h)) + a.sum())(F.silu(m.gate(h))), "up", {"up": 18}),
        (lambda m, h: (lambda p: m.down(p) + p.sum())(F.silu(m.gate(h)) * m.up(h)), "up", {"up": 18}),
        (lambda m, h: (lambda u: m.down(F.silu(m.gate(h)) * u) + u.sum())(m.up(h)), None, {"down": 6}),
        (lambda m, h: m.down(m.up(h) / F.silu(m.gate(h))), None, {}),
    ],
    ids=["gate read twice", "product read twice", "factor read twice", "divisor"],
)
def test_gates_that_spare_less(rest: Callable, gated: str | None, spared: dict[str, int]) -> None:
    site = layer_of(Chosen(rest), batch(), "gate")
    assert site.eligible
    assert (site.gated, dict(site.spared)) == (gated, spared)


@dataclass
class Layer:
    """What a loop computes for one row of a layer: its outputs, and what each neuron spends on terms and tests."""

    out: list[float]
    terms: list[int]
    tests: list[int]
    ranking: int = 0


def evaluate(x: list[float], weight: Tensor, bias: Tensor, gate: bool, order: str | None, predict: bool) -> Layer:
    """``Rough`` as a loop."""
    rows, n = weight.tolist(), len(x)
    norms = [math.sqrt(sum(row[c] ** 2 for row in rows)) for c in range(n)]
    channels = sorted(range(n), key=lambda c: -abs(x[c]) * norms[c]) if order else list(range(n))
    done = Layer([], [], [], n * (2 + 1 + math.ceil(math.log2(n)) + 1) + 2 if order else 0)
    for row, b in zip(rows, bias.tolist(), strict=True):
        terms = [row[c] * x[c] for c in channels]
        counted = [not order or x[c] != 0 for c in channels]
        evaluated, tests, z = n, 0, sum(terms) + b
        value = z / (1 + math.exp(-z)) if gate else z
        for stage in (2, 4):
            if stage >= n:
                continue
            tests += 1
            so_far = sum(terms[:stage]) + b
            if so_far < 0.1 if gate else abs(so_far) < 0.3:
                evaluated = stage
                zero = gate and (so_far < -0.1 or not predict)
                value = 0.0 if zero else so_far / (1 + math.exp(-so_far)) if gate else so_far
                break
        done.out.append(value)
        done.terms.append(2 * sum(counted[:evaluated]))
        done.tests.append(tests)
    return done


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("factor_first", [False, True])
@pytest.mark.parametrize("order", [None, "input"])
@pytest.mark.parametrize("scope", ["relu", "all", "all, down too"])
def test_what_a_gate_spares(fused: bool, factor_first: bool, order: str | None, scope: str) -> None:
    torch.manual_seed(1)
    model = Gated(fused, factor_first).double().eval()
    x = torch.randn(40, 2, dtype=torch.float64)
    gate_name, up_name = model.names()
    everything, predict = scope != "relu", scope != "relu"
    down_too = scope == "all, down too"
    sites = select_sites(find_sites(model, x), None, "all" if everything else "relu")
    wanted = [gate_name, *([up_name] if everything else []), *(["down"] if down_too else [])]
    sites = select_sites(sites, wanted)
    run = ExPrune(sites, Rough(order, predict))
    with torch.no_grad(), run:
        out = model(x)
    with torch.no_grad():
        hidden = torch.tanh(model.stem(x)).tolist()
    gate_of, up_of = model.matrices()

    spent, zeros, dense = 0, 0, 0
    for h, found in zip(hidden, out.tolist(), strict=True):
        spent, dense = spent + 2 * 2 * 8, dense + 2 * (2 * 8 + 8 * 5 + 8 * 5 + 5 * 4)  # the stem is never a site here
        gate = evaluate(h, *gate_of, True, order, predict)
        spent += sum(gate.terms) + sum(gate.tests) + gate.ranking
        if everything:
            up = evaluate(h, *up_of, False, order, predict)
        else:
            w, b = up_of
            up = Layer((w @ torch.tensor(h, dtype=torch.float64) + b).tolist(), [16] * 5, [0] * 5)
        spent += sum(up.tests) + up.ranking
        product = []
        for a, u, terms in zip(gate.out, up.out, up.terms, strict=True):
            spent += 0 if a == 0 else terms  # nobody asks for the other factor of a 0
            zeros += a == 0
            product.append(a * u)
        if down_too:
            down = evaluate(product, model.down.weight, model.down.bias, False, order, predict)
            spent += sum(down.terms) + sum(down.tests) + down.ranking
            want = down.out
        else:
            spent += sum(2 * 4 for value in product if value != 0)
            want = (model.down.weight @ torch.tensor(product, dtype=torch.float64) + model.down.bias).tolist()
        assert found == pytest.approx(want, abs=1e-9)
    gate_count = by_counts(run)[gate_name]
    assert 0 < zeros == int(gate_count.zeros) <= gate_count.pruned
    assert run.flops.dense == dense
    assert run.flops.pruned == spent
    if order:
        # Zeros that come from stopping are not zeros of the dense network.
        assert run.flops.dense_without_zero_terms == dense
    again = ExPrune(sites, Rough(order, predict))
    again.load_state_dict(run.state_dict())
    assert again.flops.pruned == spent


def test_the_lines_of_a_part_of_a_matrix() -> None:
    """A gate in one matrix with its factor has the same statistics, and stops like a gate in a matrix of its own."""
    torch.manual_seed(0)
    fused, apart = Gated(True).double().eval(), Gated(False).double().eval()
    with torch.no_grad():
        for name in ("weight", "bias"):
            gate, up = getattr(fused.both, name).chunk(2)
            getattr(apart.gate, name).copy_(gate)
            getattr(apart.up, name).copy_(up)
    apart.stem, apart.down = fused.stem, fused.down
    x, results = torch.randn(200, 2, dtype=torch.float64), []
    for model in (fused, apart):
        sites = find_sites(model, x)
        with torch.no_grad(), Recorder(sites, (2, 4, 6)) as recorder:
            model(x)
        (measured,) = recorder.statistics().values()
        statistics_ = {model.names()[0]: replace(measured, gradient=torch.ones(5, dtype=torch.float64))}
        run = ExPrune(sites, Optimal(1e-3, (2, 4, 6), statistics_, predict=True))
        with torch.no_grad(), run:
            out = model(x)
        results.append((measured, out, run))
    (one, out, run), (other, same, again) = results
    assert run.flops.sites[0].pruned > 0
    assert run.flops.pruned == again.flops.pruned
    torch.testing.assert_close(out, same)
    for name in ("slope", "offset", "sd"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    hidden = torch.tanh(fused.stem(x)).detach()
    s = (hidden[:, :2] @ fused.both.weight[0, :2]).tolist()
    line = statistics.linear_regression(s, (hidden @ fused.both.weight[0]).tolist())
    assert (float(one.slope[0, 0]), float(one.offset[0, 0])) == pytest.approx(tuple(line), rel=1e-6, abs=1e-9)


class Product(nn.Module):
    """A gate's activation before or after its factor is computed; both outputs are kept until they are needed."""

    def __init__(self, factor_first: bool) -> None:
        super().__init__()
        self.factor_first, self.act = factor_first, nn.SiLU()
        self.gate, self.up, self.down = nn.Linear(24, 12), nn.Linear(24, 12), nn.Linear(12, 4)
        self.seen: dict[str, Tensor] = {}

    def keep(self) -> None:
        self.up.register_forward_hook(lambda module, given, out: self.seen.update(up=out.clone()))
        self.act.register_forward_hook(lambda module, given, out: self.seen.update(act=out.clone()))

    def forward(self, x: Tensor) -> Tensor:
        if self.factor_first:
            return self.down(self.up(x) * self.act(self.gate(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


def stopped_at(widths: list[float], usual: list[float], left: list[float], lam: float, overhead: int) -> int | None:
    """The first stage at which stopping costs less than going on is expected to cost.

    In a row whose remaining terms are larger than usual by a factor, the same factor is expected at later stages.
    """
    for stage, width in enumerate(widths):
        damage, later = [of * width**2 for of in usual], lam * left[-1]
        for at in range(len(usual) - 1, stage - 1, -1):
            last = at == len(usual) - 1
            go_on = later if last else lam * (left[at] - left[at + 1] + overhead) + later
            later = min(damage[at], go_on)
        if damage[stage] < go_on:
            return stage
    return None


@pytest.mark.parametrize("factor_first", [False, True])
def test_a_factor_is_judged_by_what_its_gate_lets_through(factor_first: bool) -> None:
    torch.manual_seed(0)
    model = Product(factor_first).double().eval()
    x = torch.randn(300, 24, dtype=torch.float64) * torch.logspace(-1.5, 0.5, 24, dtype=torch.float64)
    stages, lam = (4, 8, 16), 3e-7
    sites = select_sites(find_sites(model, x), ["gate", "up"], "all")
    model.keep()
    with torch.no_grad(), Recorder(sites, stages, {"gate": "input", "up": "input"}) as recorder:
        model(x)
    measured = recorder.statistics()
    usual = model.seen["act"].square().mean(0).sqrt()
    assert measured["gate"].gate is None
    torch.testing.assert_close(measured["up"].gate, usual)
    gradient = torch.full((12,), 0.01, dtype=torch.float64)
    measured = {name: replace(of, gradient=gradient) for name, of in measured.items()}
    heuristic = Optimal(lam, stages, measured, predict=True)
    run = ExPrune(sites, heuristic)
    with torch.no_grad(), run:
        model(x)
    out, through = model.seen["up"], model.seen["act"].abs() / usual

    line, overhead = measured["up"], heuristic.overhead(1, next(site for site in sites if site.name == "up"))
    assert overhead == 2  # a product and a comparison; the prediction was paid for with the first test
    weight, bias = model.up.weight.detach(), model.up.bias.detach()
    dense = weight @ x.T
    norms, left, found, sure = weight.norm(dim=0), [2.0 * (24 - n) for n in stages], set(), 0
    for i, row in enumerate(x):
        energy, order = (row * norms).square(), (row * norms).abs().argsort(descending=True)
        norm, rest = energy.sum().sqrt(), [float(energy[order[n:]].sum().sqrt()) for n in stages]
        for j in range(12):
            let = 1.0 if factor_first else float(through[i, j])
            damage = [0.01 / 2 * float(u * line.sd[k, j]) ** 2 for k, u in enumerate(line.rest)]
            widths = [let * r / float(u) for r, u in zip(rest, line.rest, strict=True)]
            # A width is known to an eighth of a power of 2, so half of that to either side.
            of_both = ([width * 2 ** (sign / 15.9) for width in widths] for sign in (-1, 1))
            first, last = (stopped_at(of, damage, left, lam, overhead) for of in of_both)
            if first != last:
                continue
            sure += 1
            found.add(first)
            want, rounding = float(dense[j, i] + bias[j]), 1e-9
            if first is not None:
                s = float((row * weight[j])[order[: stages[first]]].sum())
                slope, offset = float(line.slope[first, j]), float(line.offset[first, j])
                want = s + rest[first] * (slope * s / float(norm) + offset) + float(bias[j])
                rounding = abs(slope * s) / 64 + 0.05 * rest[first] * abs(offset)  # of shares and widths
            assert float(out[i, j]) == pytest.approx(want, abs=rounding)
            assert (abs(float(out[i, j] - dense[j, i] - bias[j])) < 1e-9) == (first is None)
    assert sure > 2500
    assert found >= ({1, 2, None} if factor_first else {0, 1, 2, None})
