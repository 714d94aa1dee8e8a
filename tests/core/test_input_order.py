"""Compares pruning in the order of each input with its definition: a slow loop that sorts, sums and tests."""

import math
import statistics
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from exprune.core import (
    Calibrated,
    ExPrune,
    Heuristic,
    Optimal,
    Oracle,
    Prefix,
    Recorder,
    SettingError,
    Site,
    SiteStatistics,
    StatsTest,
    find_sites,
    select_sites,
)
from exprune.core.partial_sums import input_order
from exprune.core.partial_sums.input_order import Columns
from tests.core.brute_force import conv_terms, linear_terms
from tests.core.networks import scramble
from tests.core.solved import RELU, at_once, no_grid, thresholds, unit_moment

STAGES = (2, 4, 6, 50)


class Block(nn.Module):
    """A stem whose ReLU makes zero terms, the layer under test with BatchNorm, a residual or dilation, and a head."""

    def __init__(self, conv: bool, residual: bool = False, relu: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.residual, self.relu = residual, relu
        if conv:
            options = {"stride": 2, "padding": dilation, "dilation": dilation}
            self.stem, self.layer = nn.Conv2d(2, 9, 1), nn.Conv2d(9, 4, 3, **options)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
        else:
            self.stem, self.layer = nn.Linear(2, 9), nn.Linear(9, 4)
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.stem(x) + 0.3)

    def z(self, x: Tensor) -> Tensor:
        """What is tested: the pre-activation, or of a block without a ReLU the layer's own output."""
        hidden = self.hidden(x)
        if not self.relu:
            return self.layer(hidden)
        z = self.norm(self.layer(hidden))
        if self.residual:
            z = z + (hidden[:, :4, ::2, ::2] if hidden.dim() == 4 else hidden[:, :4])
        return z

    def forward(self, x: Tensor) -> Tensor:
        z = self.z(x)
        return self.head(F.relu(z) if self.relu else z)


@dataclass
class Row:
    """One row: its terms of every neuron in the order of this input, and what is known of it at each stage."""

    terms: list[list[float]]  # (outputs, N), sorted
    weights: list[list[int]]  # (outputs, N), the weights left in each term
    r: list[float]
    z: list[float]
    zeros: int
    rest: dict[int, float] = field(default_factory=dict)
    norm: float = 0.0


def terms_and_patches(model: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of each neuron in every row, (rows, outputs, N), and their inputs, (rows, N, K)."""
    layer, weight = model.layer, model.layer.weight.detach()
    with torch.no_grad():
        hidden = model.hidden(x)
        if weight.dim() == 2:
            return linear_terms(hidden, weight), hidden[..., None]
        terms = conv_terms(hidden, weight, layer.stride, layer.padding, layer.dilation)
        terms = terms.movedim(1, -2).flatten(0, -3)
        patches = F.unfold(hidden, 3, layer.dilation, layer.padding, layer.stride).movedim(1, 2)
        return terms, patches.reshape(len(terms), 9, 9)


def rows_of(model: Block, x: Tensor) -> list[Row]:
    weight = model.layer.weight.detach()
    terms, patches = terms_and_patches(model, x)
    with torch.no_grad():
        z = model.z(x).movedim(1, -1).flatten(0, -2)
        if model.relu:
            a = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
            terms = terms * a[:, None]
        r = z - terms.sum(-1)
    norms = [float((weight[:, c] ** 2).sum()) for c in range(9)]
    counts = (weight != 0).reshape(4, 9, -1).sum(-1).tolist()
    rows = []
    for t, patch, add, value in zip(terms.tolist(), patches.tolist(), r.tolist(), z.tolist(), strict=True):
        energy = [sum(v * v for v in values) * norm for values, norm in zip(patch, norms, strict=True)]
        order = sorted(range(9), key=lambda c: (-energy[c], c))
        row = Row([[of[c] for c in order] for of in t], [[of[c] for c in order] for of in counts], add, value, 0)
        row.zeros = sum(e == 0 for e in energy)
        row.norm = math.sqrt(sum(energy))
        row.rest = {n: math.sqrt(math.fsum(energy[c] for c in order[n:])) for n in STAGES[:3]}
        rows.append(row)
    return rows


@dataclass
class Line:
    slope: float
    offset: float
    sd: float


def lines_of(rows: list[Row]) -> tuple[dict[tuple[int, int], Line], dict[int, float]]:
    """Return the line of each neuron and stage, by the standard library's regression, and the usual remaining norm."""
    lines = {}
    for n in STAGES[:3]:
        for j in range(4):
            some = [row for row in rows if row.rest[n] > 1e-5 * row.norm]
            s = [sum(row.terms[j][:n]) / row.norm for row in some]
            y = [sum(row.terms[j][n:]) / row.rest[n] for row in some]
            slope, offset = statistics.linear_regression(s, y)
            left = math.fsum((b - slope * a - offset) ** 2 for a, b in zip(s, y, strict=True))
            lines[j, n] = Line(slope, offset, math.sqrt(left / (len(s) - 2)))
    for n in STAGES[:3]:
        least = 0.01 * statistics.median_low(lines[j, n].sd for j in range(4))
        for j in range(4):
            lines[j, n].sd = max(lines[j, n].sd, least)
    return lines, {n: math.sqrt(statistics.fmean(row.rest[n] ** 2 for row in rows)) for n in STAGES[:3]}


def expected_of(row: Row, j: int, n: int, line: Line, usual: float, in_steps: bool) -> tuple[float, float]:
    """Return the mean and sd of z given what the tests know of a row, optionally in steps of its width."""
    share = row.rest[n] / row.norm if row.norm else 0.0
    ratio = row.rest[n] / usual
    width = 0.0 if ratio <= 1e-6 else 2 ** (min(max(round(8 * math.log2(ratio)), -32), 32) / 8)
    width = width if in_steps else ratio
    s = sum(row.terms[j][:n])
    return s * (1 + line.slope * share) + row.rest[n] * line.offset + row.r[j], width * usual * line.sd


def block(conv: bool, masked: bool = False, seed: int = 0, **options: object) -> tuple[Block, Tensor, Site]:
    torch.manual_seed(seed)
    model = scramble(Block(conv, **options).double(), seed)
    if masked:
        prune.random_unstructured(model.layer, "weight", 0.3)
        model.layer(torch.zeros(1, 9, *(3, 3) * conv, dtype=torch.float64))  # sets weight = weight_orig * mask
    x = torch.randn(8, 2, 7, 7, dtype=torch.float64) if conv else torch.randn(200, 2, dtype=torch.float64)
    sites = select_sites(find_sites(model, x), "layer", "all")
    return model, x, next(site for site in sites if site.name == "layer")


def calibrated(model: Block, x: Tensor, site: Site) -> dict[str, SiteStatistics]:
    with torch.no_grad(), Recorder([site], STAGES, {"layer": "input"}) as recorder:
        for part in x.split(3 if x.dim() == 4 else 120):
            model(part)
    measured = recorder.statistics()
    gradient = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    return {"layer": replace(measured["layer"], gradient=gradient)}


CASES = [
    (conv, options)
    for conv in (False, True)
    for options in ({}, {"residual": True}, {"masked": True}, {"relu": False}, {"relu": False, "masked": True})
] + [(True, {"dilation": 2})]


@pytest.mark.parametrize(("conv", "options"), CASES)
def test_statistics_are_the_regression_of_what_is_left(conv: bool, options: dict) -> None:
    model, x, site = block(conv, **options)
    of = calibrated(model, x, site)["layer"]
    lines, usual = lines_of(rows_of(model, x))
    assert of.rest.tolist() == pytest.approx(list(usual.values()), rel=1e-5)
    for k, n in enumerate(STAGES[:3]):
        for j in range(4):
            found = Line(of.slope[k, j].item(), of.offset[k, j].item(), of.sd[k, j].item())
            assert vars(found) == pytest.approx(vars(lines[j, n]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("conv", "options"), CASES)
@pytest.mark.parametrize("kind", ["calibrated", "optimal", "predict"])
def test_every_neuron_stops_where_the_loop_stops_it(conv: bool, options: dict, kind: str) -> None:
    model, x, site = block(conv, **options)
    if kind != "predict" and not site.before_relu:
        pytest.skip("only a prediction stops a layer without a ReLU")
    measured, rows = calibrated(model, x, site), rows_of(model, x)
    lines, usual = lines_of(rows)
    predict, weights_per_term, gradient = kind == "predict", 9 if conv else 1, measured["layer"].gradient
    lam = 0.004 / weights_per_term
    heuristic = (
        Calibrated(0.2, STAGES, measured)
        if kind == "calibrated"
        else Optimal(lam, STAGES, measured, ahead=False, predict=predict)
    )
    totals = [sum(weights) for weights in rows[0].weights]
    lefts = {n: [total * (1 - n / 9) for total in totals] for n in STAGES[:3]}
    line = 2 if not options.get("residual") else 3
    # Without an activation a row tells which neurons stop, so that the prediction alone is paid for, once.
    overhead = dict.fromkeys(STAGES, line + predict) if site.before_relu else {STAGES[0]: line}

    expected = {
        n: [[expected_of(row, j, n, lines[j, n], usual[n], site.before_activation) for j in range(4)] for row in rows]
        for n in STAGES[:3]
    }

    def points(n: int) -> list[list[float]]:
        """Return each row's thresholds in units of sd; they mean nothing where z is certain (sd 0)."""
        if kind == "calibrated":
            return [[statistics.NormalDist().inv_cdf(0.2)] * 4] * len(rows)
        sd = torch.tensor([[sd for _, sd in row] for row in expected[n]], dtype=torch.float64)
        left = 2 * torch.tensor(lefts[n], dtype=torch.float64).expand_as(sd)
        if not site.before_relu:
            return at_once(gradient, sd, left, lam, unit_moment).tolist()
        sd = sd.masked_fill(sd == 0, 1)  # what is certain has no threshold
        return (thresholds(RELU, gradient, sd, left, 0, lam, 1, False, predict) / sd).tolist()

    below = {n: points(n) for n in STAGES[:3]}

    def gap(i: int, j: int, n: int) -> float:
        """Return by how many sd the neuron lies on the side of going on."""
        mean, sd = expected[n][i][j]
        if sd == 0:
            return -math.inf if predict or mean < 0 else math.inf
        return mean / sd - below[n][i][j]

    with torch.no_grad(), no_grid(), ExPrune([site], heuristic, gain_ratio=1000) as run:
        seen = []
        hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        model(x)
        hook.remove()
    out = seen[0].movedim(1, -1).flatten(0, -2).tolist()

    at, near, spent, tests, dense, nonzero = [0] * 3, 0, 0, 0, 0, 0
    for i, (row, values) in enumerate(zip(rows, out, strict=True)):
        for j in range(4):
            total, stop, value, unsure = totals[j], None, row.z[j], False
            kept = sum(row.weights[j][: 9 - row.zeros])
            dense, nonzero = dense + 2 * total, nonzero + 2 * kept
            for k, n in enumerate(STAGES[:3]):
                tests += overhead.get(n, 0)
                distance = gap(i, j, n)
                unsure = unsure or abs(distance) < 1e-6
                if distance < 0:
                    stop, value = n, expected[n][i][j][0] if predict else 0.0
                    at[k] += 1
                    break
            value = max(value, 0.0) if model.relu else value
            near += unsure
            if not unsure:
                assert values[j] == pytest.approx(value, rel=1e-6, abs=1e-6)
            spent += 2 * sum(row.weights[j][: min(stop or 9, 9 - row.zeros)])
    (count,) = run.flops.sites
    assert near == 0
    norm = min(18, math.prod((2, 2)) * 5) if conv else 2
    tests += len(rows) * (9 * (norm + 1 + 4 + 1) + 3)  # and the ranking
    assert count.stopped == at
    assert 0 < sum(at) < len(rows) * 4 or predict
    assert count.dense_flops == dense
    assert count.pruned_flops == spent + tests
    assert count.zero_terms == dense - nonzero


def test_zero_terms_cost_nothing_and_are_shown_apart() -> None:
    """Rows with only 3 nonzero terms: a neuron that stops after 4 leaves out nothing but zeros."""
    layer = nn.Linear(8, 5)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer, nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1, 1, -1, -1, -1, -1, -1])))
        model[0].bias.zero_()
    x = torch.rand(200, 8) + 0.1

    class Everything(Heuristic):
        def order(self, site: Site) -> str:
            return "input"

        def stop(self, seen: Prefix) -> Tensor:
            assert not seen.rest.any()
            return torch.ones_like(seen.s, dtype=torch.bool)

    with torch.no_grad(), ExPrune(find_sites(model, x), Everything(n=4)) as run:
        model(x)
    (count,) = (site for site in run.flops.sites if site.site.name == "2")
    outputs, ranking, tests = 200 * 5, 200 * (8 * (2 + 1 + 3 + 1) + 1), 200 * 5
    assert count.dense_flops == 2 * 8 * outputs
    assert count.pruned_flops == 2 * 3 * outputs + ranking + tests
    assert count.zero_terms == run.flops.dense - run.flops.dense_without_zero_terms == 2 * 5 * outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gathered", [0, 4, math.inf])
@pytest.mark.parametrize("shape", [(40, 1, 33, 5), (7, 9, 20, 3), (0, 4, 8, 2), (1, 1, 1, 1)])
def test_sums_are_of_the_largest_terms_however_they_are_made(
    dtype: torch.dtype, gathered: float, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terms are gathered one by one, or computed as products of rows padded with zeros, or a mix of both."""
    monkeypatch.setattr(input_order, "_GATHERED", gathered)
    count, kernel, terms, outputs = shape
    torch.manual_seed(0)
    rows, weight = torch.randn(count, kernel, terms, dtype=dtype), torch.randn(kernel * terms, outputs, dtype=dtype)
    stages = [n for n in (1, 2, 5, 7, 19, 20, 30) if n <= terms]
    with torch.inference_mode():
        sums = list(Columns(weight, torch.ones(terms)).rank(rows, stages).sums())
    expected = torch.zeros(len(stages), count, outputs, dtype=torch.float64)
    for row in range(count):
        largest = sorted(range(terms), key=lambda term: -float(rows[row, :, term].square().sum()))
        for stage, n in enumerate(stages):
            for term in largest[:n]:
                expected[stage, row] += rows[row, :, term].double() @ weight[term::terms].double()
    torch.testing.assert_close(torch.stack(sums).double(), expected, rtol=0, atol=300 * torch.finfo(dtype).eps)


def test_ties_stand_as_they_stand() -> None:
    """Equal inputs and equal weights: the first n channels come first."""
    layer = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1, 1, -1, 1, -1]).expand(3, -1))
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), layer, nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1.0)
    seen_sums = []

    class Look(Heuristic):
        def order(self, site: Site) -> str:
            return "input"

        def stop(self, seen: Prefix) -> Tensor:
            seen_sums.append(seen.s.clone())
            return torch.zeros_like(seen.s, dtype=torch.bool)

    sites = select_sites(find_sites(model, torch.zeros(4, 2)), "2")
    with torch.no_grad(), ExPrune(sites, Look(n=3)):
        model(torch.zeros(4, 2))
    assert seen_sums[0].unique().tolist() == [1.0]


@given(seed=st.integers(0, 1000), conv=st.booleans(), predict=st.booleans())
@settings(max_examples=15, deadline=None)
def test_flops_do_not_depend_on_the_batch_or_its_order(seed: int, conv: bool, predict: bool) -> None:
    model, x, site = block(conv, seed=seed % 7)
    measured = calibrated(model, x, site)

    def run_over(parts: list[Tensor]) -> tuple:
        with torch.no_grad(), ExPrune([site], Optimal(1e-3, STAGES, measured, predict=predict)) as run:
            for part in parts:
                model(part)
        (count,) = run.flops.sites
        return count.stopped, count.pruned_flops, count.zero_terms, int(count.wrong)

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert run_over([x]) == run_over(list(x[order].split(3)))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("predict", [False, True])
def test_no_price_changes_nothing(conv: bool, predict: bool) -> None:
    model, x, site = block(conv)
    with torch.no_grad():
        want = model(x)
        with ExPrune([site], Optimal(0.0, STAGES, calibrated(model, x, site), predict=predict)) as run:
            assert torch.equal(model(x), want)
    assert run.flops.sites[0].pruned == 0


def test_rows_that_are_no_data_do_not_count() -> None:
    model, x, site = block(False)
    measured = calibrated(model, x, site)
    rows = torch.rand(len(x)) < 0.5
    counts = []
    for given_rows, batch in ((rows, x), (None, x[rows])):
        with torch.no_grad(), ExPrune([site], Optimal(3e-3, STAGES, measured), rows=given_rows) as run:
            model(batch)
        (count,) = run.flops.sites
        counts.append((count.outputs, count.stopped, count.pruned_flops, count.zero_terms))
    assert counts[0] == counts[1]


def test_the_oracle_pays_for_the_ranking() -> None:
    model, x, site = block(True)
    flops = []
    for order in ("model", "input"):
        with torch.no_grad(), ExPrune([site], Oracle(4, order)) as run:
            model(x)
        (count,) = run.flops.sites
        assert count.pruned == int(count.negative) > 0
        flops.append(count.pruned_flops)
    ranking = len(x) * 16 * (9 * (18 + 1 + 4 + 1) + 1)
    assert ranking - count.zero_terms < flops[1] - flops[0] < ranking  # terms that are zero cost nothing
    with pytest.raises(SettingError, match="order='layer' of Oracle: must be model or input"):
        Oracle(4, "layer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_less_precision(dtype: torch.dtype) -> None:
    model, x, site = block(True)
    model, x = model.to(dtype), x.to(dtype)
    measured = calibrated(model, x, site)
    with torch.no_grad(), ExPrune([site], Optimal(1e-3, STAGES, measured, predict=True)) as run:
        assert model(x).dtype == dtype
    assert run.flops.sites[0].pruned


def test_layers_without_a_relu_are_sites_of_scope_all() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.up, self.down, self.grouped = nn.Linear(6, 12), nn.Linear(12, 6), nn.Conv1d(6, 6, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            scores = self.query(x) @ self.key(x).transpose(1, 2)
            x = x + scores.softmax(-1) @ x
            x = x + self.down(F.relu(self.up(x)))
            return self.grouped(x.transpose(1, 2))

    model, x = Attention().eval(), torch.randn(40, 5, 6)
    sites = {site.name: site for site in find_sites(model, x)}
    both, one = ("zero", "prediction"), ("prediction",)
    assert {name: site.outcomes for name, site in sites.items()} == {
        "stem": both,
        "query": one,
        "key": one,
        "up": both,
        "down": one,
        "grouped": (),
    }
    assert [site.name for site in select_sites(list(sites.values()), None) if site.eligible] == ["up"]
    every = select_sites(list(sites.values()), None, "all")
    assert [site.name for site in every if site.eligible] == ["stem", "query", "key", "up", "down"]
    with pytest.raises(SettingError, match="Calibrated: query feeds no activation"):
        ExPrune(every, Calibrated(0.1, (2,)))
    with pytest.raises(SettingError, match="scope='most': must be relu or all"):
        select_sites(every, None, "most")

    with torch.no_grad(), Recorder(every, (2, 4, 8), dict.fromkeys(sites, "input")) as recorder:
        model(x)
    measured = {n: replace(of, gradient=torch.ones(of.slope.shape[1])) for n, of in recorder.statistics().items()}
    with torch.no_grad():
        want = model(x)
        for lam, agrees in ((0.0, True), (1e-6, False), (1.0, False)):
            with ExPrune(every, Optimal(lam, (2, 4, 8), measured, predict=True)) as run:
                assert torch.equal(model(x), want) == agrees
        assert all(count.pruned == count.outputs for count in run.flops.sites)  # at any price: all after two terms
        assert all(int(count.wrong) == 0 for count in run.flops.sites if not count.site.before_relu)


def test_bad_input_is_said_in_one_line() -> None:
    model, x, site = block(False)
    with pytest.raises(SettingError, match="predict='yes' of Optimal"):
        Optimal(1e-3, predict="yes")

    class Squares(StatsTest):
        def order(self, site: Site) -> str:
            return "input"

    with pytest.raises(SettingError, match="Squares: order='input' of layer: there are no sums of squares"):
        ExPrune([site], Squares(0.1, 4))

    class Other(Heuristic):
        def order(self, site: Site) -> str:
            return "best"

        def stop(self, seen: Prefix) -> Tensor:
            raise AssertionError

    with pytest.raises(SettingError, match="an order of evaluation is a tensor, None or 'input', not 'best'"):
        ExPrune([site], Other(n=4))
    with torch.no_grad():
        model.stem.weight.zero_()
        model.stem.bias.fill_(-1.0)
    with pytest.raises(SettingError, match="calibration: all inputs of layer are zero in 200 rows"):
        calibrated(model, x, site)


class Certain(Heuristic):
    """Stops neurons that cannot become positive: the rest adds at most its norm times that of the neuron's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stages, self.met = STAGES[:-1], []

    def order(self, site: Site) -> str:
        return "input"

    def stop(self, seen: Prefix) -> Tensor:
        self.met.append(seen.weight)
        weight = seen.weight.unflatten(0, (-1, 9))  # (kernel, terms, outputs)
        norms = seen.site.weight.flatten(2) if seen.site.weight.dim() > 2 else seen.site.weight[..., None]
        reach = (weight.square().sum(0) / norms.square().sum((0, 2))[:, None]).sum(0).sqrt()
        return seen.s + (seen.rest + 1e-5 * seen.norm) * reach + seen.r < 0


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_bound_of_what_is_left_stops_nothing_positive(conv: bool, seed: int) -> None:
    """A heuristic receives the weights with the scale of a BatchNorm included, so that its bound holds."""
    torch.manual_seed(seed)
    model = scramble(Block(conv)).eval()
    with torch.no_grad():
        model.norm.weight.mul_(5)
        model.norm.bias.sub_(4)
    x = torch.randn(6, 2, *[8, 8][: 2 * conv])
    sites = select_sites(find_sites(model, x), ["layer"])
    heuristic = Certain()
    dense = model(x)
    with ExPrune(sites, heuristic) as run:
        assert torch.allclose(model(x), dense, atol=1e-5)
    (site,) = run.flops.sites
    assert site.wrong == 0 and site.pruned > 0
    a = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    layer = model.layer.weight.detach().flatten(2) if conv else model.layer.weight.detach()[..., None]
    expected = (layer * a[:, None, None]).permute(2, 1, 0).flatten(0, 1)
    assert torch.allclose(heuristic.met[0], expected)
