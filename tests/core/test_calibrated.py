"""Calibrated tests against their definition, one neuron at a time, with the standard library's statistics."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from exprune.core import (
    Calibrated,
    ExPrune,
    InputVariances,
    Optimal,
    Oracle,
    Prefix,
    Recorder,
    SettingError,
    Site,
    SiteStatistics,
    SquaredGradients,
    find_sites,
    term_order,
)
from tests.core.brute_force import conv_terms, linear_terms
from tests.core.networks import pruned_pass, scramble
from tests.core.solved import RELU, no_grid, thresholds

STAGES = (2, 4, 6, 50)


class Block(nn.Module):
    """A stem, then the layer under test with BatchNorm, and optionally a residual."""

    def __init__(self, conv: bool, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        if conv:
            self.stem, self.layer = nn.Conv2d(2, 9, 1), nn.Conv2d(9, 4, 3, stride=2, padding=1)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
        else:
            self.stem, self.layer = nn.Linear(2, 9), nn.Linear(9, 4)
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.z(x)))

    def z(self, x: Tensor) -> Tensor:
        """The pre-activation."""
        hidden = torch.tanh(self.stem(x))
        z = self.norm(self.layer(hidden))
        if self.residual:
            z = z + (hidden[:, :4, ::2, ::2] if hidden.dim() == 4 else hidden[:, :4])
        return z


@dataclass
class Known:
    """What the brute force knows of a block: terms times a in order of evaluation; r; K."""

    terms: list[list[list[float]]]  # neuron j, row i, term c
    r: list[list[float]]
    z: list[list[float]]
    weights_per_term: int

    def line(self, j: int, n: int) -> tuple[float, float, float]:
        """Slope, offset and residual standard deviation from the standard library's regression."""
        s = [sum(row[:n]) for row in self.terms[j]]
        full = [sum(row) for row in self.terms[j]]
        slope, offset = statistics.linear_regression(s, full)
        left = [f - slope * v - offset for v, f in zip(s, full, strict=True)]
        return slope, offset, math.sqrt(sum(v * v for v in left) / (len(left) - 2))


def block(conv: bool, residual: bool = False, seed: int = 0) -> tuple[Block, Tensor, Site]:
    torch.manual_seed(seed)
    model = scramble(Block(conv, residual).double(), seed)
    x = torch.randn(8, 2, 7, 7, dtype=torch.float64) if conv else torch.randn(120, 2, dtype=torch.float64)
    site = next(site for site in find_sites(model, x) if site.name == "layer")
    assert site.eligible
    return model, x, site


def known(model: Block, x: Tensor, orders: list[list[int]] | None = None) -> Known:
    conv = isinstance(model.layer, nn.Conv2d)
    with torch.no_grad():
        hidden = torch.tanh(model.stem(x))
        if conv:
            terms = conv_terms(hidden, model.layer.weight, (2, 2), (1, 1), (1, 1)).movedim(1, 0).flatten(1, -2)
            z = model.z(x).movedim(1, 0).flatten(1)
        else:
            terms, z = linear_terms(hidden, model.layer.weight).movedim(1, 0), model.z(x).movedim(1, 0)
        terms = terms * (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).view(-1, 1, 1)
        if orders is not None:
            terms = torch.stack([of[:, order] for of, order in zip(terms, orders, strict=True)])
        r = z - terms.sum(-1)
    return Known(terms.tolist(), r.tolist(), z.tolist(), 9 if conv else 1)


def calibrated(
    model: Block, x: Tensor, orders: dict[str, Tensor] | None = None, stages: tuple[int, ...] = STAGES
) -> dict[str, SiteStatistics]:
    with torch.no_grad(), Recorder(find_sites(model, x), stages, orders) as recorder:
        for part in x.split(3 if x.dim() == 4 else 50):
            model(part)
    return recorder.statistics()


def expected(
    of: Known, stops: Callable[[int, int, float, float, float], bool], overhead: int
) -> tuple[list[list[bool]], list[int], int]:
    """Which neurons stop, how many at each stage, and the FLOPs; ``stops(j, n, mean, sd, remaining FLOPs)`` decides."""
    stopped, at, spent = [], [0] * 3, 0
    total = len(of.terms[0][0])
    for j, rows in enumerate(of.terms):
        lines = {n: of.line(j, n) for n in STAGES[:3]}
        stopped.append([])
        for row, r in zip(rows, of.r[j], strict=True):
            evaluated = total
            for k, n in enumerate(STAGES[:3]):
                slope, offset, sd = lines[n]
                spent += overhead
                left = 2 * of.weights_per_term * (total - n)
                if slope > 0 and stops(j, n, slope * sum(row[:n]) + offset + r, sd, left):
                    evaluated = n
                    at[k] += 1
                    break
            stopped[-1].append(evaluated < total)
            spent += 2 * of.weights_per_term * evaluated
    return stopped, at, spent


def compare(model: Block, x: Tensor, heuristic: Calibrated | Optimal, want: tuple) -> None:
    stopped, at, spent = want
    with torch.no_grad(), ExPrune(find_sites(model, x), heuristic) as run:
        recorded = []
        hook = model.head.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0].clone()))
        model(x)
        hook.remove()
    (count,) = run.flops.sites
    out = recorded[0].movedim(1, 0).flatten(1) if recorded[0].dim() == 4 else recorded[0].movedim(1, 0)
    zeroed = (out == 0).tolist()
    z = model.z(x).movedim(1, 0).flatten(1).tolist()
    assert zeroed == [[stop or v <= 0 for stop, v in zip(*both, strict=True)] for both in zip(stopped, z, strict=True)]
    assert count.stopped == at
    assert count.pruned_flops == spent
    assert 0 < sum(at) < out.numel()


CASES = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(("conv", "residual"), CASES)
@pytest.mark.parametrize("tau", [0.02, 0.2])
def test_calibrated_is_the_gaussian_risk(conv: bool, residual: bool, tau: float) -> None:
    model, x, _ = block(conv, residual)
    want = expected(
        known(model, x),
        lambda j, n, mean, sd, left: 1 - statistics.NormalDist(mean, sd).cdf(0) < tau,
        overhead=3 if residual else 1,
    )
    compare(model, x, Calibrated(tau, STAGES, calibrated(model, x)), want)


@pytest.mark.parametrize("conv", [False, True])
def test_every_batch_is_tested_with_the_parameters_it_meets(conv: bool) -> None:
    model, x, _ = block(conv)
    statistics_of_sites = calibrated(model, x)

    def stopped(run: ExPrune) -> int:
        with torch.no_grad(), run:
            model(x)
        return sum(int(count.pruned) for count in run.flops.sites)

    def new() -> ExPrune:
        return ExPrune(find_sites(model, x), Calibrated(0.1, STAGES, statistics_of_sites))

    going_on = new()
    before = stopped(going_on)
    with torch.no_grad():
        model.norm.bias.add_(0.5)
        model.norm.weight.mul_(0.5)
    assert stopped(going_on) == before + stopped(new())
    assert stopped(new()) != before


@pytest.mark.parametrize(("conv", "residual"), CASES)
def test_optimal_weighs_damage_against_flops(conv: bool, residual: bool) -> None:
    """E[relu(z)^2] by summing z^2 times the density over a fine grid."""
    model, x, _ = block(conv, residual)
    gradient = torch.rand(4, dtype=torch.float64) + 0.1
    lam = 0.002 / (9 if conv else 1)

    def stops(j: int, n: int, mean: float, sd: float, left: int) -> bool:
        step = sd / 200
        normal = statistics.NormalDist(mean, sd)
        high = max(mean, 0) + 9 * sd
        grid = (i * step for i in range(int(high / step) + 1))
        damage = sum(v * v * normal.pdf(v) for v in grid) * step
        return gradient[j].item() * damage / 2 < lam * left

    measured = calibrated(model, x)
    measured["layer"] = replace(measured["layer"], gradient=gradient)
    want = expected(known(model, x), stops, overhead=3 if residual else 1)
    with no_grid():
        compare(model, x, Optimal(lam, STAGES, measured, ahead=False), want)


def test_looking_ahead_is_backward_induction() -> None:
    """The cheapest policy of one neuron, by recursion over its expectation, in sums over fine grids."""
    sd, gradient, left, lam, overhead = [1.3, 0.9, 0.4], 0.7, [60, 40, 12], 0.01, 3
    means = [k / 20 for k in range(-200, 201)]

    def damage(mean: float, stage: int) -> float:
        normal, step = statistics.NormalDist(mean, sd[stage]), sd[stage] / 30
        values = ((i + 0.5) * step for i in range(int((max(mean, 0) + 8 * sd[stage]) / step)))
        return gradient / 2 * step * sum(v * v * normal.pdf(v) for v in values)

    def cost_from(mean: float) -> float:
        place = min(max((mean + 10) * 20, 0), 399.999)
        part = place - int(place)
        return later[int(place)] * (1 - part) + later[int(place) + 1] * part

    points, later = [], []
    for stage in (2, 1, 0):
        stop = [damage(mean, stage) for mean in means]
        go_on = [lam * left[2]] * len(means)
        if stage < 2:
            width = math.sqrt(sd[stage] ** 2 - sd[stage + 1] ** 2)
            densities = {u / 10: statistics.NormalDist().pdf(u / 10) for u in range(-50, 51)}
            step_cost = lam * (left[stage] - left[stage + 1] + overhead)
            go_on = [step_cost + sum(p * cost_from(m + width * u) for u, p in densities.items()) / 10 for m in means]
        points.append(max(m for m, now, then in zip(means, stop, go_on, strict=True) if now < then))
        later = [min(both) for both in zip(stop, go_on, strict=True)]

    column = torch.tensor([sd], dtype=torch.float64).T
    lefts = torch.tensor([left], dtype=torch.float64).T
    of = RELU, torch.tensor([gradient], dtype=torch.float64), column, lefts, 0, lam, overhead
    found, alone = thresholds(*of, True), thresholds(*of, False)
    assert found.squeeze(1).tolist() == pytest.approx(points[::-1], abs=0.06)
    assert (found[:2] < alone[:2]).all()  # a neuron that may stop later stops less early
    assert found[2].item() == pytest.approx(alone[2].item())


def test_one_stage_has_nothing_to_look_ahead_to() -> None:
    model, x, site = block(True)
    measured = calibrated(model, x, stages=(4,))
    measured["layer"] = replace(measured["layer"], gradient=torch.rand(4).double() + 0.1)
    both = [pruned_pass(model, [site], Optimal(1e-3, (4,), measured, ahead), x) for ahead in (True, False)]
    assert both[0].flops.sites[0].stopped == both[1].flops.sites[0].stopped != [0]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("kind", ["layer", "neuron"])
def test_terms_that_vary_most_come_first(conv: bool, kind: str) -> None:
    model, x, site = block(conv)
    with torch.no_grad(), InputVariances([site]) as inputs:
        for part in x.split(3):
            model(part)
        hidden = torch.tanh(model.stem(x)).movedim(1, -1).flatten(0, -2)
    variances = inputs.variances()["layer"]
    torch.testing.assert_close(variances, hidden.var(0, correction=0))

    energy = [
        [variances[c].item() * float((model.layer.weight.detach()[j, c] ** 2).sum()) for c in range(9)]
        for j in range(4)
    ]
    if kind == "layer":
        shares = [[e / sum(row) for e in row] for row in energy]
        energy = [[sum(column) for column in zip(*shares, strict=True)]] * 4
    orders = [sorted(range(9), key=lambda c: -row[c]) for row in energy]
    order = term_order(site, variances, kind)
    assert order.expand(4, -1).tolist() == orders

    tau = 0.1
    want = expected(
        known(model, x, orders), lambda j, n, mean, sd, left: 1 - statistics.NormalDist(mean, sd).cdf(0) < tau, 1
    )
    compare(model, x, Calibrated(tau, STAGES, calibrated(model, x, {"layer": order})), want)


def test_an_order_is_known() -> None:
    _, _, site = block(False)
    assert term_order(site, torch.ones(9), "model") is None
    with pytest.raises(SettingError, match="order='best': must be one of model, layer, neuron"):
        term_order(site, torch.ones(9), "best")


@pytest.mark.parametrize("kind", [None, "neuron"])
def test_under_a_static_mask(kind: str | None) -> None:
    """Each neuron's line is that of its own terms; missing terms are never evaluated."""
    model, x, _ = block(False, seed=3)
    prune.random_unstructured(model.layer, "weight", 0.3)
    model.layer(torch.zeros(1, 9, dtype=torch.float64))  # sets weight = weight_orig * mask
    (site,) = (site for site in find_sites(model, x) if site.name == "layer")
    orders = [[c for c in range(9) if model.layer.weight_mask[j, c]] for j in range(4)]
    order = None
    if kind == "neuron":
        with torch.no_grad(), InputVariances([site]) as inputs:
            model(x)
        order = term_order(site, inputs.variances()["layer"], kind)
        orders = [[c for c in row if model.layer.weight_mask[j, c]] for j, row in enumerate(order.tolist())]
    with torch.no_grad(), Recorder([site], STAGES, {"layer": order}) as recorder:
        model(x)
    measured = recorder.statistics()
    heuristic = Calibrated(0.2, STAGES, measured)
    with torch.no_grad(), ExPrune([site], heuristic, gain_ratio=1.0) as run:
        model(x)
    with torch.no_grad():
        terms = linear_terms(torch.tanh(model.stem(x)), model.layer.weight).movedim(1, 0)
        a = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        b = (model.layer.bias - model.norm.running_mean) * a + model.norm.bias
    spent = 0
    for j, rows in enumerate((terms * a.view(-1, 1, 1)).tolist()):
        rows = [[row[c] for c in orders[j]] for row in rows]
        total = len(orders[j])
        tests = [n for n in STAGES if total >= n and total - n >= n]
        lines = {}
        for n in tests:
            s, full = [sum(row[:n]) for row in rows], [sum(row) for row in rows]
            slope, offset = statistics.linear_regression(s, full)
            left = [f - slope * v - offset for v, f in zip(s, full, strict=True)]
            lines[n] = slope, offset, math.sqrt(sum(v * v for v in left) / (len(left) - 2))
        for row in rows:
            evaluated = total
            for n in tests:
                slope, offset, sd = lines[n]
                spent += 1
                mean = slope * sum(row[:n]) + offset + b[j].item()
                if slope > 0 and 1 - statistics.NormalDist(mean, sd).cdf(0) < 0.2:
                    evaluated = n
                    break
            spent += 2 * evaluated
    (count,) = run.flops.sites
    assert count.pruned_flops == spent
    assert 0 < count.pruned < count.outputs


@pytest.mark.parametrize("conv", [False, True])
def test_gradients_are_those_of_autograd(conv: bool) -> None:
    model, x, site = block(conv)
    with SquaredGradients([site]) as gradients:
        for part in x.split(3):
            model(part).square().sum().backward()
    model(x)
    out = F.relu(model.z(x)).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(model.head(out).square().sum(), out)
    squares = wanted.square().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(gradients.mean()["layer"], squares.mean(0))


class Recurrent(nn.Module):
    """Call a layer three times, the first time without gradients; another layer does not affect the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.beside = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.no_grad():
            x = F.relu(self.layer(x))
        F.relu(self.beside(x))
        for _ in range(2):
            x = F.relu(self.layer(x))
        return x


def test_gradients_of_a_model_that_disables_them_in_some_calls() -> None:
    model, x = Recurrent(), torch.randn(50, 8)
    with SquaredGradients(find_sites(model, x)) as gradients:
        model(x).square().sum().backward()
    means = gradients.mean()
    with torch.no_grad():
        first = F.relu(model.layer(model.stem(x)))
    second = F.relu(model.layer(first)).detach().requires_grad_()
    third = F.relu(model.layer(second))
    of_second, of_third = torch.autograd.grad(third.square().sum(), (second, third))
    wanted = torch.cat([of_second, of_third]).square().mean(0)
    torch.testing.assert_close(means["layer"], wanted.double())
    assert means["beside"].tolist() == [0.0] * 5  # no loss depends on it


def test_gradients_that_are_disabled() -> None:
    model, x, site = block(False)
    with torch.no_grad(), SquaredGradients([site]) as gradients:
        model(x)
    with pytest.raises(SettingError, match="layer called with gradients disabled"):
        gradients.mean()


def test_rows_that_are_padding_teach_nothing() -> None:
    model, x, site = block(False)
    rows = torch.arange(len(x)) % 6 != 0

    def measure(inputs: Tensor, rows: Tensor | None) -> tuple[SiteStatistics, Tensor, Tensor]:
        recorder = Recorder([site], STAGES)
        recorder.rows = rows
        with torch.no_grad(), recorder:
            model(inputs)
        gradients, variances = SquaredGradients([site]), InputVariances([site])
        gradients.rows = variances.rows = rows
        with gradients, variances:
            model(inputs).square().sum().backward()
        return recorder.statistics()["layer"], gradients.mean()["layer"], variances.variances()["layer"]

    padded, alone = measure(x, rows), measure(x[rows], None)
    for name in ("slope", "offset", "sd"):
        torch.testing.assert_close(getattr(padded[0], name), getattr(alone[0], name))
    torch.testing.assert_close(padded[1:], alone[1:])


def test_the_oracle_stops_all_negative_neurons_and_no_other() -> None:
    model, x, site = block(True)
    run = pruned_pass(model, [site], Oracle(n=2), x)
    (count,) = run.flops.sites
    assert count.pruned == int(count.negative) == int((model.z(x) <= 0).sum()) > 0
    assert int(count.wrong) == 0
    assert count.pruned_flops == count.outputs + 18 * (2 * count.pruned + 9 * (count.outputs - count.pruned))


@pytest.mark.parametrize("heuristic", [lambda s: Calibrated(0, STAGES, s), lambda s: Optimal(0, STAGES, s)])
def test_no_risk_stops_nothing(heuristic: Callable) -> None:
    """Not even neurons that never fired during calibration, or on which the loss does not depend."""
    model, x, site = block(False)
    model.norm.bias.data[0] = -1e6
    measured = calibrated(model, x)
    measured["layer"] = replace(measured["layer"], gradient=torch.tensor([0.0, 0.0, 1.0, 1.0]).double())
    assert pruned_pass(model, [site], heuristic(measured), 100 * x).flops.sites[0].pruned == 0


@pytest.mark.parametrize("factor", [-2.0, torch.tensor([-2.0, 1.0, -1.0, 3.0])])
def test_a_negative_factor_where_nothing_is_added(factor: float | Tensor) -> None:
    """Some neurons' sums fall as their terms rise, and there is no tensor besides the terms."""
    torch.manual_seed(0)
    stem, layer = nn.Linear(2, 9), nn.Linear(9, 4, bias=False)

    class Negated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.head = stem, layer, nn.Linear(4, 3)
            self.register_buffer("factor", torch.as_tensor(factor))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.layer(torch.tanh(self.stem(x))) * self.factor))

    model, x = Negated().eval(), torch.randn(400, 2)
    measured = calibrated(model, x)
    site = next(site for site in find_sites(model, x) if site.name == "layer")
    (count,) = pruned_pass(model, [site], Calibrated(0.2, STAGES, measured), x).flops.sites

    terms = torch.tanh(stem(x))[:, None, :] * layer.weight * torch.as_tensor(factor).view(-1, 1).expand(4, 1)
    of, stopped = measured["layer"], torch.zeros(400, 4, dtype=torch.bool)
    for stage, n in enumerate(of.stages):
        order = of.order if of.order is not None else torch.arange(9)
        s = terms[..., order[:n]].sum(-1)
        expected = of.slope[stage] * s + of.offset[stage]
        stopped |= (expected < -statistics.NormalDist().inv_cdf(0.8) * of.sd[stage]) & (of.slope[stage] > 0)
    assert 0 < int(stopped.sum()) == count.pruned


def test_a_prefix_that_does_not_vary_says_nothing() -> None:
    model, x, site = block(False)
    model.layer.weight.data[1, :2] = 0
    measured = calibrated(model, x, stages=(2,))
    assert measured["layer"].slope[0, 1] == 0
    (count,) = pruned_pass(model, [site], Calibrated(0.5, (2,), measured), x).flops.sites
    stopped = pruned_pass(model, [site], _Only(1, Calibrated(0.5, (2,), measured)), x).flops.sites[0].pruned
    assert stopped == 0 < count.pruned


class _Only(Calibrated):
    """What another test stops of one neuron."""

    def __init__(self, neuron: int, other: Calibrated) -> None:
        super().__init__(other.tau, other.stages, other.statistics)
        self.neuron = neuron

    def stop(self, seen: Prefix) -> Tensor:
        return super().stop(seen) & (torch.arange(seen.s.shape[-1]) == self.neuron)


def test_what_is_wrong_is_said() -> None:
    model, x, site = block(False)
    with pytest.raises(SettingError, match="99 rows of layer; at least 100"):
        calibrated(model, x[:99])
    with pytest.raises(SettingError, match="no statistics of site layer"):
        pruned_pass(model, [site], Calibrated(0.1, STAGES), x)
    with pytest.raises(SettingError, match="no statistics of site layer after 7 terms"):
        pruned_pass(model, [site], Calibrated(0.1, (2, 4, 6, 7), calibrated(model, x)), x)
    with pytest.raises(SettingError, match="lack gradients"):
        pruned_pass(model, [site], Optimal(1.0, STAGES, calibrated(model, x)), x)
    for lam in (-1.0, math.inf, math.nan, "much", True):
        with pytest.raises(SettingError, match="lam="):
            Optimal(lam)
    with pytest.raises(SettingError, match=r"tau=0\.7"):
        Calibrated(0.7)


def test_of_many_positions_some_are_looked_at() -> None:
    """Of 12 x 12 positions of an input, every third is measured; of 8 x 8, all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 9, 1), nn.Tanh(), nn.Conv2d(9, 4, 3, padding=1), nn.ReLU()).double().eval()
    for side, step in ((12, 3), (8, 1)):
        x = torch.randn(5, 2, side, side, dtype=torch.float64)
        with torch.no_grad():
            hidden = model[1](model[0](x))
            full = F.conv2d(hidden, model[2].weight, padding=1).movedim(1, -1).flatten(0, 2)[::step]
            s = F.conv2d(hidden[:, :4], model[2].weight[:, :4], padding=1).movedim(1, -1).flatten(0, 2)[::step]
            with Recorder(find_sites(model, x), (4,)) as recorder:
                model(x)
        (of,) = recorder.statistics().values()
        for j in range(4):
            slope, offset = statistics.linear_regression(s[:, j].tolist(), full[:, j].tolist())
            assert of.slope[0, j].item() == pytest.approx(slope, rel=1e-9)
            assert of.offset[0, j].item() == pytest.approx(offset, rel=1e-9)


@pytest.mark.parametrize("as_matrix", [False, True])
def test_of_many_tokens_some_are_looked_at(as_matrix: bool) -> None:
    """Of 145 tokens of a text, every third that is not padding is measured, also in one matrix of all texts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 4), nn.ReLU()).double().eval()
    x = torch.randn(5, 145, 3, dtype=torch.float64)
    rows = torch.arange(145) < torch.tensor([145, 100, 120, 77, 144]).view(-1, 1)
    sites = find_sites(model, x)
    recorder = Recorder(sites, (4,))
    recorder.rows = rows
    with torch.no_grad():
        hidden = model[1](model[0](x))[:, ::3][rows[:, ::3]]
        with recorder:
            model(x.flatten(0, 1) if as_matrix else x)
    (of,) = recorder.statistics().values()
    weight = model[2].weight.detach()
    s, full = hidden[:, :4] @ weight[:, :4].T, hidden @ weight.T
    for j in range(4):
        slope, offset = statistics.linear_regression(s[:, j].tolist(), full[:, j].tolist())
        assert of.slope[0, j].item() == pytest.approx(slope, rel=1e-9)
        assert of.offset[0, j].item() == pytest.approx(offset, rel=1e-9)


def test_layers_too_short_for_a_test_are_not_recorded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5), nn.ReLU()).eval()
    x = torch.randn(120, 9)
    with torch.no_grad(), Recorder(find_sites(model, x), (8,)) as recorder:
        model(x)
    assert list(recorder.statistics()) == ["4"]


def test_what_is_wrong_of_a_recording_is_said() -> None:
    model, x, site = block(False)
    with pytest.raises(SettingError, match=r"stages=\[4, 2\]: must be whole numbers"):
        Recorder([site], (4, 2))
    recorder = Recorder([site], STAGES)
    recorder.rows = torch.ones(len(x) + 1, dtype=torch.bool)
    with pytest.raises(SettingError, match=f"rows: {len(x) + 1} values, but layer has {len(x)}"), recorder:
        model(x)
    with pytest.raises(SettingError, match="training mode"), Recorder([site], STAGES):
        model.train()(x)


@pytest.mark.parametrize("test", [lambda **given: Optimal(1e-9, **given), lambda **given: Calibrated(0.1, **given)])
def test_statistics_know_their_stages(test: Callable[..., Optimal | Calibrated]) -> None:
    def of(*stages: int) -> SiteStatistics:
        lines = torch.ones(len(stages), 3, dtype=torch.float64)
        return SiteStatistics(stages, lines, lines, lines)

    measured = {"short": of(8, 16), "long": of(8, 16, 32, 64)}
    assert test(statistics=measured).stages == (8, 16, 32, 64)
    later = test()
    later.statistics = measured
    assert later.stages == (8, 16, 32, 64)
    assert test(stages=[8, 16, 32, 64], statistics=measured).stages == (8, 16, 32, 64)
    assert test(stages=[8, 16, 32, 64, 128], statistics=measured).stages == (8, 16, 32, 64, 128)  # longer than any site
    for other in ([32, 64], [8, 16, 32], [8, 16, 24, 32, 64], [128]):
        with pytest.raises(SettingError, match=r"measured at \[8, 16, 32, 64\]; leave stages out"):
            test(stages=other, statistics=measured)
        late = test(stages=other)
        with pytest.raises(SettingError, match=r"measured at \[8, 16, 32, 64\]; leave stages out"):
            late.statistics = measured
