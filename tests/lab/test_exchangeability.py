"""Permutation tests, networks trained together, the level of a test: by brute force, by symmetry, by design."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import ExPrune, SettingError, StatsTest, find_sites
from exprune.lab.exchangeability.many_networks import Weights, new_networks, outputs, train
from exprune.lab.exchangeability.nominal_level import correlation, explained, stats_test
from exprune.lab.exchangeability.permutation_tests import Outcome, classifier_test, kernel_test, networks_needed

Test = Callable[..., Outcome]
TESTS = pytest.mark.parametrize("test", [kernel_test, classifier_test])


def normal(networks: int, members: int = 4, features: int = 3, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).normal(size=(networks, members, features))


# Permutation tests


@TESTS
@pytest.mark.parametrize("alpha", [0, -0.1, 0.51, math.nan, True, "0.1"])
def test_alpha_outside_of_its_range_is_one_line(test: Test, alpha: object) -> None:
    with pytest.raises(SettingError, match=r"^alpha=.*a level in \(0, 0.5\]$"):
        test(normal(64), alpha=alpha)


@TESTS
@pytest.mark.parametrize(
    ("group", "line"),
    [
        (normal(64, 1), r"^a group of 1 with 3 features: at least 2 members"),
        (normal(64, 4, 0), r"^a group of 4 with 0 features"),
        (normal(64)[0, 0], r"^group of shape \(3,\): \(networks, members\)"),
        (np.full((64, 4), np.nan), r"^group: 256 of 256 values are NaN"),
    ],
)
def test_what_is_no_group_is_one_line(test: Test, group: NDArray, line: str) -> None:
    with pytest.raises(SettingError, match=line):
        test(group)


@TESTS
def test_too_few_networks_or_permutations_are_told_how_many_are_needed(test: Test) -> None:
    needed = networks_needed(2, 0.01, halves=test is classifier_test)
    with pytest.raises(SettingError, match=f"^3 networks: groups of 2 need at least {needed} for alpha=0.01$"):
        test(normal(3, 2), alpha=0.01)
    with pytest.raises(SettingError, match=r"^permutations=98: must be a whole number, at least 99 for alpha=0.01$"):
        test(normal(64), 98, alpha=0.01)
    assert test(normal(needed, 2), 99, alpha=0.01).networks == needed


@pytest.mark.parametrize("members", [2, 3, 5, 16, 500])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 1 / 36, 0.001])
def test_so_many_networks_have_enough_orders(members: int, alpha: float) -> None:
    """One network's order is of no account: the others' are as many as are told apart."""
    needed = networks_needed(members, alpha)
    assert math.factorial(members) ** (needed - 1) >= 1 / alpha * (1 - 1e-9)
    assert needed == 2 or math.factorial(members) ** (needed - 2) < 1 / alpha


@TESTS
def test_exchangeable_groups_are_rejected_no_more_often_than_alpha(test: Test) -> None:
    """Groups with a size in common, which are dependent: with a probability of 0.001, 0.1 gives 21 of 100 or more."""
    p = [
        test(normal(12, 3, 2, s) * np.random.default_rng(s).gamma(2, size=(12, 1, 1)), 19, 0.1, s).p for s in range(100)
    ]
    assert sum(one <= 0.1 for one in p) < 21
    assert np.mean(p) == pytest.approx(0.5, abs=0.12)


def test_each_test_sees_what_it_is_for() -> None:
    """Members of different sizes; and members that are alike, but each like the next one."""
    sizes = normal(64, 8) * np.linspace(0.5, 1.5, 8)[:, None]
    walk = normal(64, 9)
    chain = walk[:, 1:] + 0.7 * walk[:, :-1]
    assert kernel_test(sizes, 199).p == classifier_test(sizes, 199).p == 1 / 200
    assert classifier_test(chain, 199).p == 1 / 200
    assert kernel_test(chain, 199).p > 0.05  # which looks at one at a time


@TESTS
def test_a_seed_gives_the_same_again(test: Test) -> None:
    assert test(normal(16), 99, seed=3) == test(normal(16), 99, seed=3)


# Many networks at once


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


OPTIMIZERS = pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)],
    ids=["SGD", "Adam"],
)


def batches(networks: int, steps: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(networks, 6, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (networks, 6), generator=generator),
        )
        for _ in range(steps)
    ]


@OPTIMIZERS
def test_each_network_is_trained_as_if_it_were_alone(optimizer: Callable) -> None:
    weights, seen = new_networks(Net, 3), batches(3)
    together = train(Net(), weights, F.cross_entropy, seen, optimizer)
    for number in range(3):
        alone = Net()
        alone.load_state_dict({name: weight[number] for name, weight in weights.items()})
        step = optimizer(alone.parameters())
        for x, y in seen:
            step.zero_grad()
            F.cross_entropy(alone(x[number]), y[number]).backward()
            step.step()
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(together[name][number], weight.detach())
        x = seen[0][0][0]
        torch.testing.assert_close(outputs(alone, together, x)[number], alone(x).detach())


@OPTIMIZERS
def test_what_is_permuted_before_training_is_permuted_after_it(optimizer: Callable) -> None:
    """The theorem's own step: the optimiser is equivariant, so that units keep the symmetry that they began with."""

    def permuted(of: Weights) -> Weights:
        by = torch.tensor([2, 0, 3, 1])
        return of | {
            "first.weight": of["first.weight"][:, by],
            "first.bias": of["first.bias"][:, by],
            "head.weight": of["head.weight"][:, :, by],
        }

    weights, (x, y) = new_networks(Net, 2), batches(1, 1)[0]
    seen = [(x[0], y[0])] * 20
    after = train(Net(), weights, F.cross_entropy, seen, optimizer, shared=True)
    before = train(Net(), permuted(weights), F.cross_entropy, seen, optimizer, shared=True)
    assert not torch.equal(after["first.weight"], weights["first.weight"])
    for name, weight in permuted(after).items():
        torch.testing.assert_close(before[name], weight)


def test_a_rate_of_its_own_is_a_factor_of_the_step() -> None:
    weights, seen = new_networks(Net, 2), batches(2, 1)
    sgd = lambda parameters: torch.optim.SGD(parameters, 0.1)  # noqa: E731
    rate = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    plain, rated = (
        train(Net(), weights, F.cross_entropy, seen, sgd, rates) for rates in (None, {"first.weight": rate})
    )
    steps = [of["first.weight"] - weights["first.weight"] for of in (plain, rated)]
    torch.testing.assert_close(steps[1], steps[0] * rate)
    torch.testing.assert_close(rated["head.weight"], plain["head.weight"])


def test_new_networks_are_pytorch_s_own_and_have_no_buffers() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    many = new_networks(Net, 3, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(many["first.weight"][0], Net().first.weight.detach())
    with pytest.raises(SettingError, match="buffer 'running_mean'"):
        new_networks(lambda: nn.BatchNorm1d(3), 2)


# The level of a test


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5])
def test_what_is_stopped_is_what_the_engine_stops(alpha: float, finite: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 2)).double().eval()
    x = torch.randn(50, 6, dtype=torch.float64)
    hidden, layer = model[1](model[0](x)).detach(), model[2]
    terms, rest = hidden[:, None] * layer.weight.detach(), layer.bias.detach().expand(50, -1)
    stopped = stats_test(terms, rest, torch.arange(5).expand(50, -1)).stopped(alpha, finite)
    with torch.no_grad(), ExPrune(find_sites(model, x), StatsTest(alpha, n=5, finite_population=finite)) as run:
        model(x)
    assert int(run.flops.sites[0].pruned) == int(stopped.sum()) > 0


def test_distance_is_in_errors_of_draws_without_replacement() -> None:
    """Over all draws the centred estimates have the deviation by which the distance is measured."""
    terms, rest = torch.randn(1, 1, 6, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    draws = torch.combinations(torch.arange(6), 3)
    estimates = (terms[0, 0][draws].mean(1) + 0.5 / 6) - (terms.sum() + 0.5) / 6
    found = stats_test(terms.expand(len(draws), 1, 6), rest.expand(len(draws), 1), draws)
    assert float(estimates.mean()) == pytest.approx(0, abs=1e-12)
    expected = (terms.sum() + 0.5) / 6 / (estimates**2).mean().sqrt()
    assert found.distance.flatten().tolist() == pytest.approx([float(expected)] * len(draws))


def test_over_random_draws_the_test_keeps_its_level() -> None:
    """Normal terms, 32 of 300, at the boundary: 0.1 within a tenth of it."""
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(20_000, 1, 300, generator=generator)
    found = stats_test(terms, -terms.sum(-1), torch.arange(32).expand(len(terms), -1))
    for finite in (False, True):
        assert float(found.stopped(0.1, finite).double().mean()) == pytest.approx(0.1, abs=0.012)
    assert torch.equal(found.stopped(0.1), found.stopped(0.1, centred=True))


@pytest.mark.parametrize("n", [1, 6, 7])
def test_a_test_needs_two_terms_and_leaves_one(n: int) -> None:
    with pytest.raises(SettingError, match=f"^{n} of 6 terms: at least 2"):
        stats_test(torch.randn(2, 3, 6), torch.zeros(2, 3), torch.zeros(2, n, dtype=torch.long))
    with pytest.raises(SettingError, match=r"^alpha=0: "):
        stats_test(torch.randn(2, 3, 6), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)).stopped(0)


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_equally_correlated_terms_explain_what_the_formula_says(rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(40_000, 1, 1, generator=generator) * rho**0.5
    terms = shared + torch.randn(40_000, 1, 20, generator=generator) * (1 - rho) ** 0.5
    assert float(correlation(terms)) == pytest.approx(rho, abs=0.01)
    for n in (1, 5, 20):
        expected = n * (1 + 19 * rho) / (20 * (1 + (n - 1) * rho))
        assert float(explained(terms[..., :n].sum(-1), terms.sum(-1))) == pytest.approx(expected, abs=0.02)
