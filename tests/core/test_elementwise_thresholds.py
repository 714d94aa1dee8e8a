"""Tables and thresholds of elementwise activations, compared with integrals."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune.core import Activation
from exprune.core.decisions.moments import half_moment, predicted_moment
from exprune.core.decisions.stopping import stop_below, stop_narrower, tolerated, zero_below
from tests.core.activations import (
    DENSITY,
    FAR,
    NAMED,
    E,
    Function,
    Rule,
    column,
    exceeding,
    first_at_least,
    near,
    ones,
    squares_and_errors,
)
from tests.core.solved import RELU, exactly, problem, thresholds, zero_exactly, zero_thresholds


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("sd", [0.02, 0.3, 1.0, 1.3, 8.0])
def test_thresholds_are_where_the_integrals_say(name: str, sd: float) -> None:
    """The tables, and interpolation between their rows and columns, agree with a dense grid."""
    f, scale = NAMED[name], sd**4 if name == "squared relu" else sd**2
    for price in (2e-4, 1e-2, 0.1, 0.4):
        for spared in (0, 3):
            left = price * scale
            for predict in (False, True):
                rule = Rule(f.function, 2.0, left, spared * left / 10, 1.0, predict)
                point, zero = rule.points(sd)
                found = thresholds(f, 2 * ones(), column(sd), column(left), rule.spared, 1.0, 1, False, predict)
                _agree(float(found), point, sd)
                if predict and spared:
                    _agree(float(zero_thresholds(f, 2 * ones(), column(sd), rule.spared, 1.0)), zero, sd)


def _agree(found: float, want: float, sd: float) -> None:
    if abs(want) <= 10 * sd:
        assert near(want, found, sd)
    else:  # beyond the range, almost nothing stops or almost everything does
        assert abs(found) > 8 * sd
        assert (found > 0) == (want > 0)


@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "relu"])
@pytest.mark.parametrize("sd", [0.05, 0.5, 3.0])
def test_tolerances_are_kept_as_the_integrals_say(name: str, sd: float) -> None:
    f, mean = NAMED[name], FAR * sd
    for tolerance in (0.01, 0.1, 0.5):
        exceeds = exceeding(f.function, mean, sd, tolerance)
        for tau in (0.01, 0.1, 0.5):
            found, want = float(tolerated(f, column(sd), tolerance, tau)), first_at_least(exceeds, tau, mean)
            if abs(found - want) > 0.004:  # the steps in which |f| is compared with the tolerance
                _agree(found, want, sd)


def induction(
    f: Function, sds: Sequence[float], left: Sequence[float], spared: float, lam: float, overhead: int, predict: bool
) -> tuple[list[float], list[Tensor], Tensor]:
    """Thresholds of one neuron with a gradient of 2 by dynamic programming on a dense grid; the cost of stopping minus
    that of going on after each stage; and the grid."""
    mean = torch.arange(-30, 30.001, 0.05, dtype=torch.float64) * sds[0]
    points, gains, later = [], [], None
    for k in range(len(sds) - 1, -1, -1):
        squares, errors = squares_and_errors(f, mean, sds[k])
        stop = squares.minimum(errors + lam * spared) if predict else squares
        if later is None:
            go_on = torch.full_like(mean, lam * (left[k] + spared))
        else:
            revealed = math.sqrt(sds[k] ** 2 - sds[k + 1] ** 2)
            place = ((mean[:, None] + revealed * E - mean[0]) / (mean[1] - mean[0])).clamp(0, len(mean) - 1.001)
            lower = place.long()
            value = torch.lerp(later[lower], later[lower + 1], place - lower)
            go_on = lam * (left[k] - left[k + 1] + overhead) + (value * DENSITY).sum(1)
        points.append(first_at_least(stop, go_on, mean))
        gains.append(stop - go_on)
        later = stop.minimum(go_on)
    return points[::-1], gains[::-1], mean


@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "squared relu"])
@pytest.mark.parametrize("spared", [0, 40])
@pytest.mark.parametrize("predict", [False, True])
@pytest.mark.parametrize("sds", [(1.0, 0.6, 0.3), (0.35, 0.12, 0.005)])  # the last is narrower than what is tabulated
def test_looking_ahead_is_a_backward_induction(name: str, spared: int, predict: bool, sds: tuple[float, ...]) -> None:
    f, left = NAMED[name], (96.0, 64.0, 32.0)
    for lam in (1e-5, 1e-4, 1e-3, 4e-3):
        want, gains, mean = induction(f.function, sds, left, spared, lam, 1, predict)
        given_ = (2 * ones(), column(*sds), column(*left), spared, lam, 1)
        found = thresholds(f, *given_, True, predict).flatten().tolist()
        once = thresholds(f, *given_, False, predict).flatten().tolist()
        assert found[-1] == once[-1]
        for k, (one, other) in enumerate(zip(found, want, strict=True)):
            if abs(other) > 8 * sds[k]:
                continue
            assert one > other or near(one, other, sds[k])
            assert one < once[k] or near(one, once[k], sds[k])  # with a chance to stop later, going on is cheaper
            # Two curves that hardly differ may cross anywhere; it only matters that they do not differ there.
            place = int((one - mean[0]) / (mean[1] - mean[0]))
            assert abs(float(gains[k][place])) < 0.02 * lam * (left[k] + spared) or near(one, other, sds[k])


@given(
    name=st.sampled_from(["gelu", "silu", "softplus", "squared relu", "relu"]),
    lam=st.floats(1e-7, 1e-1),
    more=st.floats(1.0, 50.0),
    spared=st.integers(0, 200),
    predict=st.booleans(),
    ahead=st.booleans(),
    spread=st.floats(0.02, 20),
)
@settings(max_examples=60, deadline=None)
def test_a_higher_price_stops_more(
    name: str, lam: float, more: float, spared: int, predict: bool, ahead: bool, spread: float
) -> None:
    # A neuron that outputs its expectation gives up what a later 0 would save, and a price makes that cost more as
    # well.
    spared = 0 if predict and ahead else spared
    sd, left = spread * column(1.0, 0.7, 0.4), column(96, 64, 32)
    low, high = (
        thresholds(NAMED[name], ones(), sd, left, spared, price, 1, ahead, predict) for price in (lam, lam * more)
    )
    assert not low.isnan().any()
    assert not high.isnan().any()
    assert ((high >= low - 0.02 * sd) | (high >= low)).all()


@pytest.mark.parametrize("u", [-7.0, -5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("predict", [False, True])
def test_moments_of_a_relu_are_integrals(u: float, predict: bool) -> None:
    z = torch.linspace(u - 12, u + 12, 200_001, dtype=torch.float64)
    density = torch.exp(-((z - u) ** 2) / 2) / math.sqrt(2 * math.pi)
    error = z.clamp(min=0) - (max(u, 0) if predict else 0)
    want = float(torch.trapezoid(error**2 * density, z))
    found = (predicted_moment if predict else half_moment)(torch.tensor(u, dtype=torch.float64))
    assert float(found) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("predict", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_of_a_relu_it_is_what_is_known_of_a_relu(predict: bool, ahead: bool) -> None:
    """Two ways to compute one threshold: quadrature for any activation, and closed-form moments."""
    sd, left = column(1.0, 0.6, 0.25) * torch.tensor([0.1, 1.0, 7.0]), column(96, 64, 32).expand(3, 3)
    gradient = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    compared = 0
    for lam in 10.0 ** torch.arange(-7, 0, 0.5):
        rest = (gradient, sd, left, 0, float(lam), 1, ahead, predict)
        found = thresholds(NAMED["relu"], *rest) / sd
        want = thresholds(RELU, *rest) / sd
        usual = want.abs() < 4
        compared += int(usual.sum())
        assert ((found - want).abs() < 0.03 * (1 + want.abs()))[usual].all()
        assert (found[want <= -4] < -3.9).all()
        assert (found[want >= 4] > 3.9).all()
    assert compared > 20


@pytest.mark.parametrize("activation", [RELU, NAMED["silu"], NAMED["gelu"]])
@pytest.mark.parametrize("predict", [False, True])
@pytest.mark.parametrize("spared", [0, 200])
def test_between_the_points_of_the_grid(activation: Activation, predict: bool, spared: int) -> None:
    """Neurons with the same course: interpolated thresholds cost almost the same as exact ones."""
    generator = torch.Generator().manual_seed(0)
    gradient, scale = (torch.exp(torch.randn(64, generator=generator, dtype=torch.float64)) for _ in range(2))
    sd, left = column(1.0, 0.7, 0.45, 0.2) * scale, column(96, 80, 64, 32).expand(4, 64)
    spared = 0 if activation.relu else spared
    of = problem(activation, gradient, sd, left, spared, 3e-3, 3, True, predict)
    widths = torch.tensor([0.3, 1.0, 2.7], dtype=torch.float64)
    found, want = stop_below(of, widths), exactly(of, widths)
    wide = widths[:, None, None] * sd
    both = found.isfinite() & want.isfinite()
    off = ((found - want) / wide)[both]
    assert both.double().mean() > 0.5
    assert off.abs().median() < 0.02
    # Next to a value that never or always stops, the more cautious neighbour decides.
    assert float((off.abs() > 0.3).double().mean()) < 0.1
    bold = ((found == math.inf) & (want < math.inf)) | ((found > -math.inf) & (want == -math.inf))
    assert float(bold.double().mean()) < 0.01


@given(seed=st.integers(0, 10_000), ahead=st.booleans(), overhead=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_without_an_activation_a_width_decides(seed: int, ahead: bool, overhead: int) -> None:
    """By recursion over the stages, at widths on both sides of the grid points."""
    generator = torch.Generator().manual_seed(seed)
    sd = torch.rand(4, 3, generator=generator, dtype=torch.float64).sort(0, descending=True).values + 0.05
    gradient = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    left = column(96, 80, 64, 32).expand(4, 3)
    lam = 1e-3
    of = replace(problem(NAMED["relu"], gradient, sd, left, 0, lam, overhead, ahead, True), activation=None)
    found = stop_narrower(of)
    for k in range(4):
        for j in range(3):
            for width, want in ((0.999 * float(found[k, j]), True), (1.001 * float(found[k, j]), False)):
                damage = [width**2 * float(gradient[j]) * float(s[j]) ** 2 / 2 for s in sd]

                def cost_from(stage: int, damage: list[float] = damage, j: int = j) -> float:
                    go_on = lam * float(left[stage, j])
                    if ahead and stage < 3:
                        go_on = lam * (float(left[stage, j] - left[stage + 1, j]) + overhead)
                        go_on += min(damage[stage + 1], cost_from(stage + 1))
                    return go_on

                assert (damage[k] < cost_from(k)) == want


@pytest.mark.parametrize("name", ["relu", "gelu"])
@pytest.mark.parametrize("predict", [False, True])
def test_under_a_static_mask_each_neuron_has_a_course_of_its_own(name: str, predict: bool) -> None:
    """Most neurons have few weights left and are known after the first stages, others after the last one: what is known
    of some does not apply to the others."""
    torch.manual_seed(0)
    outputs = 70
    gradient = 10 ** torch.empty(outputs, dtype=torch.float64).uniform_(-3, 0)
    left = torch.randint(2, 60, (outputs,)).double() * torch.tensor([[1.0], [0.6], [0.3], [0.1]])
    sd = torch.rand(outputs, dtype=torch.float64).add(0.5) * left.div(left[0]).sqrt()
    known = torch.arange(outputs) % 3 > 0
    left[2:, known], sd[2:, known] = 0, torch.finfo(torch.float64).tiny
    of = problem(NAMED[name], gradient, sd, left, 0.0, 3e-3, 1, True, predict)
    widths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found, want = stop_below(of, widths), exactly(of, widths)
    unknown = (left > 0).expand_as(found)
    both = unknown & want.isfinite()
    assert (found.isfinite() == want.isfinite())[unknown].double().mean() > 0.95 and both.sum() > 100
    assert not ((found == math.inf) & (want < math.inf))[unknown].any()  # beside "always" the more cautious
    apart = ((found - want).abs() / (widths[:, None, None] * sd))[both]
    assert apart.quantile(0.8 if predict else 0.98) < 0.05  # predictions have thresholds that rise to infinity


def test_a_neuron_that_dead_inputs_leave_known_is_not_stopped_where_it_is_positive() -> None:
    """Its remaining terms never varied on the calibration inputs: its value is known, and 0 does not predict it."""
    sd = torch.tensor([[1.0, 1.0, 1.0], [0.5, 1e-300, 1e-3]], dtype=torch.float64)
    left = torch.tensor([[10.0], [5.0]], dtype=torch.float64).expand(2, 3)
    found = stop_below(problem(RELU, ones().expand(3), sd, left, 0.0, 1.0, 1, True), torch.ones(1, dtype=torch.float64))
    assert 0 <= found[0, 1, 1] < 1e-290 and found[0, 1, 2] < 0.6 and 0 < found[0, 1, 0] < 20


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_where_a_zero_is_better_is_read_off_near_where_each_neuron_has_it(name: str) -> None:
    torch.manual_seed(0)
    gradient = 10 ** torch.empty(60, dtype=torch.float64).uniform_(-2, 0)
    sd = torch.rand(60, dtype=torch.float64).add(0.5) * torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    of = problem(NAMED[name], gradient, sd, torch.full_like(sd, 40.0), 30.0, 1e-3, 1, True, True)
    widths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found, want = zero_below(of, widths), zero_exactly(of, widths)
    both = found.isfinite() & want.isfinite()
    assert both.sum() > 100
    apart = ((found - want).abs() / (widths[:, None, None] * sd))[both]
    assert apart.quantile(0.9) < 0.05
