"""The other heuristics before activations other than ReLU."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exprune.core import (
    Calibrated,
    ExPrune,
    Heuristic,
    Optimal,
    Oracle,
    Recorder,
    StatsTest,
    Threshold,
    find_sites,
    select_sites,
)
from tests.core.activations import FAR, NAMED, STAGES, Function, exceeding, first_at_least, known, recorded
from tests.core.networks import by_name, pruned_pass, refusal


@pytest.mark.parametrize("tau", [0.05, 0.2])
@pytest.mark.parametrize("name", ["silu", "softplus"])
def test_calibrated_with_a_tolerance(name: str, tau: float) -> None:
    """With Gaussian sums, stopped neurons would have exceeded the tolerance as often as the integral says: with
    probability tau where they are about to go on, and less beyond."""
    torch.manual_seed(0)
    tolerance, f = {"silu": 0.25, "softplus": 0.3}[name], NAMED[name].function
    model = nn.Sequential(nn.Linear(24, 24, bias=False), nn.Linear(24, 8), Lambda(f), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[1].weight.mul_(6.0)
        model[1].bias.sub_(3.0)
    x = torch.randn(6000, 24, dtype=torch.float64)
    sites = select_sites(find_sites(model, x[:5]), "1")
    with torch.no_grad(), Recorder(sites, (16,)) as recorder:
        model(x[:3000])
    measured, seen = recorder.statistics(), []
    hook = model[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] == 0))
    run = pruned_pass(model, sites, Calibrated(tau, (16,), measured, tolerance=tolerance), x[3000:])
    hook.remove()
    with torch.no_grad():
        h, weight, bias, of = model[0](x[3000:]), model[1].weight, model[1].bias, measured["1"]
        mean, sd = h[:, :16] @ weight[:, :16].T * of.slope[0] + of.offset[0] + bias, of.sd[0].expand(3000, 8)
        large = f(h @ weight.T + bias).abs() > tolerance
    (stopped,) = seen
    assert run.flops.sites[0].pruned == int(stopped.sum())
    points = torch.tensor(
        [first_at_least(exceeding(f, FAR * w, w, tolerance), tau, FAR * w) for w in of.sd[0].tolist()]
    )
    sure = (mean - points).abs() > 0.04 * (mean**2 + sd**2).sqrt()
    assert sure.float().mean() > 0.9
    assert torch.equal(stopped[sure], (mean < points)[sure])
    for some in (stopped, stopped & (mean > points - 0.3 * sd)):  # all, and those that hardly stop
        chance = exceeding(f, mean[some], sd[some][:, None], tolerance)
        assert len(chance) > 200
        assert float(chance.max()) < 1.1 * tau
        noise = float((chance * (1 - chance)).sum().sqrt()) / len(chance)
        assert float(large[some].double().mean()) == pytest.approx(float(chance.mean()), abs=4 * noise)
    assert float(chance.mean()) > 0.6 * tau


class Lambda(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


@pytest.mark.parametrize("order", ["model", "input"])
@pytest.mark.parametrize("conv", [False, True])
def test_the_oracle_with_a_price(conv: bool, order: str) -> None:
    of = known("gelu", conv, order == "input")
    run = ExPrune([of.site], Oracle(4, order, of.lam, of.measured))
    out = recorded(of.model, of.x, run)
    gradient = of.measured["layer"].gradient
    assert gradient is not None
    left, at, unsure = 2 * of.weights_per_term * 5 + 6, 0, 0
    for row, outs in zip(of.rows, out, strict=True):
        for j in range(4):
            exact = row.z[j] * (1 + math.erf(row.z[j] / math.sqrt(2))) / 2
            gain = of.lam * left - float(gradient[j]) / 2 * exact**2
            unsure += abs(gain) < 1e-9
            stop = gain > 0
            at += stop
            assert outs[j] == pytest.approx(0.0 if stop else exact, rel=1e-9, abs=1e-12)
    assert unsure == 0
    (count,) = run.flops.sites
    assert count.pruned == int(count.zeros) == at
    assert 0 < at < 4 * len(of.rows)


def test_the_oracle_without_a_price_or_gradients() -> None:
    of = known("gelu", False, False)
    assert "Oracle needs a price" in refusal(lambda: ExPrune([of.site], Oracle(4)))
    without = {"layer": replace(of.measured["layer"], gradient=None)}
    assert "calibrate with them" in refusal(
        lambda: pruned_pass(of.model, [of.site], Oracle(4, lam=1.0, statistics=without), of.x)
    )


def test_calibrated_without_a_tolerance() -> None:
    of = known("gelu", False, False)
    assert "needs a tolerance" in refusal(lambda: ExPrune([of.site], Calibrated(0.1, STAGES, of.measured)))
    for tolerance in (0, -1, math.inf, "much"):
        assert "tolerance" in refusal(lambda t=tolerance: Calibrated(0.1, STAGES, of.measured, tolerance=t))


@pytest.mark.parametrize("heuristic", [Threshold(-0.01, n=4), StatsTest(0.3, n=4)])
def test_the_tests_of_the_paper_are_for_a_relu(heuristic: Heuristic) -> None:
    """In a network with both, they prune the layer before the ReLU, and give a reason for the other."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    model = nn.Sequential(
        *(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 2))
    )
    run = pruned_pass(model, find_sites(model, x), heuristic, x)
    (count,) = run.flops.sites
    assert count.site.name == "2"
    assert count.pruned > 0
    reason = by_name(run.sites)["4"].reason
    assert reason == f"feeds gelu, not a ReLU: {type(heuristic).__name__} has no test for it; Optimal has one"
    alone = nn.Sequential(model[0], model[1], model[4], model[5], model[6])
    message = refusal(lambda: ExPrune(find_sites(alone, x), heuristic))
    assert f"2: feeds gelu, not a ReLU: {type(heuristic).__name__} has no test for it; Optimal has one" in message


def test_both_kinds_of_layers_in_one_run() -> None:
    """Optimal stops both with their own moments; zeros of the ReLU save no more than in the dense network."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 2))
    ).double()
    x = torch.randn(150, 3, dtype=torch.float64)
    sites = find_sites(model, x)
    with torch.no_grad(), Recorder(sites, (4, 8)) as recorder:
        model(x)
    gradient = torch.ones(12, dtype=torch.float64)
    measured = {name: replace(of, gradient=gradient) for name, of in recorder.statistics().items()}
    run = pruned_pass(model, sites, Optimal(1e-3, (4, 8), measured), x)
    relu, gelu = run.flops.sites
    assert (relu.site.name, gelu.site.name) == ("2", "4")
    assert relu.pruned > 0
    assert gelu.pruned > 0
    assert (relu.spares, gelu.spares) == (0, 4)
    assert run.flops.pruned == run.flops.dense - sum(
        count.dense_flops - count.pruned_flops + count.spared for count in (relu, gelu)
    )
