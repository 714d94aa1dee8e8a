"""Stopping before any activation, compared with a loop."""

from collections.abc import Sequence
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from exprune.core import (
    ExPrune,
    Optimal,
    Prefix,
    find_sites,
)
from tests.core.activations import ACTIVATIONS, STAGES, Block, Rule, known, recorded
from tests.core.networks import pruned_pass, scramble
from tests.core.solved import no_grid


class Exact(Optimal):
    """Record the decisions."""

    decided: list[Tensor]

    def stop(self, seen: Prefix) -> Tensor:
        now = super().stop(seen)
        self.decided = [*(self.decided if seen.stage else ()), now.movedim(1, -1).flatten(0, -2)]
        return now


CASES = [
    pytest.param(
        *(activation, conv, by_input, both, both, predict),
    )
    for activation in ACTIVATIONS
    for predict in (False, True)
    for conv, by_input, both in (
        (False, False, False),
        (False, True, True),
        (True, False, True),
        (True, True, False),
    )
]


@pytest.mark.parametrize(("activation", "conv", "by_input", "norm", "residual", "predict"), CASES)
def test_every_neuron_stops_where_the_loop_stops_it(
    activation: str, conv: bool, by_input: bool, norm: bool, residual: bool, predict: bool
) -> None:
    of = known(activation, conv, by_input, norm, residual)
    f, lam, each = of.model.activation, of.lam, 2 * of.weights_per_term
    heuristic = Exact(lam, STAGES, of.measured, ahead=False, predict=predict)
    run = ExPrune([of.site], heuristic)
    with no_grid():
        out = recorded(of.model, of.x, run)
    done = [mask.tolist() for mask in heuristic.decided]
    gradient = of.measured["layer"].gradient
    assert gradient is not None

    @lru_cache
    def rule(j: int, k: int) -> Rule:
        return Rule(f, float(gradient[j]), each * (9 - STAGES[k]), of.site.worth_of_zero, lam, predict)

    def of_one(z: float) -> float:
        return float(f(torch.tensor([z], dtype=torch.float64)))

    overhead = 2 + residual + predict if by_input else 3 if residual else 1
    at, spent, zeros, unsure, wrong, negative = [0] * 3, 0, 0, 0, 0, 0
    for i, (row, outs) in enumerate(zip(of.rows, out, strict=True)):
        for j in range(4):
            negative += row.z[j] <= 0
            evaluated, value = 9, of_one(row.z[j])
            for k, n in enumerate(STAGES[:3]):
                spent += overhead
                if not by_input and of.measured["layer"].slope[k, j] <= 0:
                    continue  # the sum is not informative
                mean, sd = of.expected(row, j, k)
                stop, to_zero = rule(j, k).sides(mean, sd)
                if stop is None:
                    unsure, stop = unsure + 1, done[k][i][j]
                if stop:
                    if to_zero is None:
                        unsure, to_zero = unsure + 1, outs[j] == 0
                    at[k] += 1
                    evaluated, value = n, 0.0 if to_zero else of_one(mean)
                    zeros += to_zero
                    wrong += to_zero and row.z[j] > 0
                    break
            spent += each * evaluated
            assert outs[j] == pytest.approx(value, rel=1e-5, abs=1e-9)  # norms are float32
    (count,) = run.flops.sites
    neurons = 4 * len(of.rows)
    assert unsure < 0.15 * neurons
    if by_input:
        norms = min(18, 4 * 5) if conv else 2
        spent += len(of.rows) * (9 * (norms + 1 + 4 + 1) + 3)
    assert count.stopped == at
    assert count.outputs == neurons
    assert count.pruned_flops == spent
    assert int(count.zeros) == zeros
    assert int(count.wrong) == wrong or activation == "softplus"  # see below
    assert int(count.negative) == negative or activation == "softplus"
    assert count.spared == (0 if count.site.rectified else 6 * zeros)
    assert run.flops.pruned == run.flops.dense - count.dense_flops + spent - count.spared
    assert 0 < sum(at) < neurons or (activation == "leaky_relu" and not predict)  # see below


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("predict", [False, True])
def test_no_price_changes_nothing(activation: str, by_input: bool, predict: bool) -> None:
    of = known(activation, False, by_input)
    with torch.no_grad():
        want = of.model(of.x)
        with ExPrune([of.site], Optimal(0.0, STAGES, of.measured, predict=predict)) as run:
            torch.testing.assert_close(of.model(of.x), want, rtol=1e-12, atol=1e-12)
    (count,) = run.flops.sites
    assert count.pruned == int(count.zeros) == count.spared == 0


@given(seed=st.integers(0, 1000), by_input=st.booleans(), predict=st.booleans(), conv=st.booleans())
@settings(max_examples=8, deadline=None)
def test_flops_do_not_depend_on_the_batch_or_its_order(seed: int, by_input: bool, predict: bool, conv: bool) -> None:
    of = known("gelu", conv, by_input)

    def run_over(parts: Sequence[Tensor]) -> tuple:
        run = pruned_pass(of.model, [of.site], Optimal(of.lam, STAGES, of.measured, predict=predict), *parts)
        (count,) = run.flops.sites
        return run.flops.pruned, count.stopped, count.pruned_flops, int(count.zeros), int(count.wrong)

    order = torch.randperm(len(of.x), generator=torch.Generator().manual_seed(seed))
    assert run_over([of.x]) == run_over(of.x[order].split(1 + seed % 5))


def test_rows_that_are_no_data_spare_nothing() -> None:
    of = known("silu", False, False)
    rows = torch.rand(len(of.x), generator=torch.Generator().manual_seed(0)) < 0.5
    counts = []
    for mask, x in ((rows, of.x), (None, of.x[rows])):
        with torch.no_grad(), ExPrune([of.site], Optimal(of.lam, STAGES, of.measured, predict=True), rows=mask) as run:
            of.model(x)
        (count,) = run.flops.sites
        counts.append((count.outputs, count.stopped, int(count.zeros), count.spared, count.pruned_flops))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_input", [False, True])
def test_in_less_precision(dtype: torch.dtype, by_input: bool) -> None:
    of = known("gelu", True, by_input, True, True)
    model = scramble(Block(F.gelu, True, True, True)).to(dtype)
    with torch.no_grad(), ExPrune(find_sites(model, of.x.to(dtype)), None):
        want = model(of.x.to(dtype))
    run = ExPrune(find_sites(model, of.x.to(dtype)), Optimal(of.lam, STAGES, of.measured, predict=True))
    with torch.no_grad(), run:
        out = model(of.x.to(dtype))
    assert out.dtype == want.dtype == dtype
    assert out.isfinite().all()
    assert run.flops.sites[0].pruned
