"""The setting of every site, errors for wrong ones, and custom heuristics."""

import math

import pytest
import torch
from torch import Tensor, nn

from exprune.core import (
    ExPrune,
    Heuristic,
    Prefix,
    SettingError,
    Site,
    StatsTest,
    Threshold,
    find_sites,
    select_sites,
)
from exprune.core.heuristics.heuristic import per_site
from tests.core.networks import by_name, counts, pruned_pass, refusal

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NAMES = ["blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"]


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, hidden)
        self.fc2 = nn.Linear(hidden, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu()).relu()


class Model(nn.Module):
    """Four sites with 8, 6, 8 and 12 terms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.blocks = nn.Sequential(Block(6), Block(12))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().double().eval()


def knobs(model: nn.Module, tau: object, heuristic: type[Heuristic] = StatsTest) -> dict[str, float | None]:
    """The setting of each site."""
    return ExPrune(find_sites(model, X), heuristic(tau, n=3)).taus


# tau


@pytest.mark.parametrize("tau", [0, 0.25, 0.5])
def test_a_number_is_every_site_s(model: nn.Module, tau: float) -> None:
    assert knobs(model, tau) == dict.fromkeys(NAMES, tau)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_in_the_order_of_the_eligible_sites(model: nn.Module, kind: type) -> None:
    values = kind([0.1, 0.2, 0.3, 0.4])
    assert knobs(model, values) == dict(zip(NAMES, values, strict=True))


def test_a_list_counts_selected_sites_only(model: nn.Module) -> None:
    sites = select_sites(find_sites(model, X), "blocks.1.*")
    assert ExPrune(sites, StatsTest([0.1, 0.2], n=3)).taus == {"blocks.1.fc1": 0.1, "blocks.1.fc2": 0.2}


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        ({"*": 0.1}, [0.1, 0.1, 0.1, 0.1]),
        ({"*": 0.1, "blocks.1.fc1": 0.2}, [0.1, 0.1, 0.2, 0.1]),  # an exact name takes precedence over a wildcard
        ({"*.fc1": 0.1, "*": 0.2}, [0.1, 0.2, 0.1, 0.2]),  # then the first match wins
        ({"*": 0.2, "*.fc1": 0.1}, [0.2, 0.2, 0.2, 0.2]),
        ({"blocks.0.*": 0.1, "*.fc1": 0.2, "*": 0.3}, [0.1, 0.1, 0.2, 0.3]),
        ({"blocks.?.fc1": 0.1, "blocks.[1-3].fc2": 0.2, "blocks.0.fc2": 0}, [0.1, 0, 0.1, 0.2]),
        (dict(zip(NAMES, [0.4, 0.3, 0.2, 0.1], strict=True)), [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_a_mapping_is_looked_up_by_name(model: nn.Module, tau: dict[str, float], expected: list[float]) -> None:
    assert knobs(model, tau) == dict(zip(NAMES, expected, strict=True))


def test_every_site_is_tested_with_its_own_tau(model: nn.Module) -> None:
    """A site is pruned in the same way whether its tau is given by a number, a list or a mapping."""
    sites = find_sites(model, X)
    tau = {"blocks.0.fc1": 0.4, "*": 0}
    by_mapping = counts(pruned_pass(model, sites, StatsTest(tau, n=3), X))
    by_list = counts(pruned_pass(model, sites, StatsTest([0.4, 0, 0, 0], n=3), X))
    alone = counts(pruned_pass(model, select_sites(sites, "blocks.0.fc1"), StatsTest(0.4, n=3), X))
    assert by_mapping == by_list
    assert by_mapping["blocks.0.fc1"] == alone["blocks.0.fc1"]
    assert by_mapping["blocks.0.fc1"][1] != [0]
    assert all(by_mapping[name][1] == [0] for name in NAMES[1:])


# Wrong settings


@pytest.mark.parametrize(
    ("heuristic", "tau", "shown"),
    [
        (StatsTest, -0.1, "-0.1"),
        (StatsTest, 0.51, "0.51"),
        (StatsTest, 1, "1"),
        (StatsTest, math.nan, "nan"),
        (StatsTest, math.inf, "inf"),
        (StatsTest, True, "True"),
        (StatsTest, False, "False"),
        (StatsTest, "0.1", "'0.1'"),
        (StatsTest, [0.1, 0.6], "0.6"),
        (StatsTest, (0.1, None), "None"),
        (StatsTest, [0.1, math.nan], "nan"),
        (StatsTest, {"*": 0.6}, "0.6"),
        (StatsTest, {"*": None}, "None"),
        (StatsTest, {"a": 0.1, "b": "x"}, "'x'"),
        (StatsTest, {"a": True}, "True"),
        (Threshold, 0.001, "0.001"),
        (Threshold, math.nan, "nan"),
        (Threshold, False, "False"),
        (Threshold, [-1, 2], "2"),
    ],
)
def test_tau_out_of_range(heuristic: type[Heuristic], tau: object, shown: str) -> None:
    message = refusal(lambda: heuristic(tau))
    assert shown in message
    assert heuristic.__name__ in message
    assert "0.5" in message if heuristic is StatsTest else "0]" in message  # the valid range


@pytest.mark.parametrize("heuristic", [StatsTest, Threshold])
def test_tau_must_be_given_where_it_is_needed(model: nn.Module, heuristic: type[Heuristic]) -> None:
    message = refusal(lambda: ExPrune(find_sites(model, X), heuristic(n=3)))
    assert "tau" in message


@pytest.mark.parametrize(
    ("heuristic", "tau"), [(StatsTest, 0), (StatsTest, 0.5), (Threshold, 0), (Threshold, -30), (Threshold, -0.0)]
)
def test_the_ends_of_the_range_are_allowed(heuristic: type[Heuristic], tau: float) -> None:
    assert heuristic(tau).tau == tau


@pytest.mark.parametrize("n", [0, -3, 1.5, 32.0, "32", True, None])
def test_n_is_a_whole_number(n: object) -> None:
    message = refusal(lambda: StatsTest(0.1, n=n))
    assert f"n={n}" in message


def test_n_is_32_unless_told() -> None:
    assert StatsTest(0.1).stages == Threshold(-1).stages == (32,)


@pytest.mark.parametrize(
    ("tau", "shown"),
    [
        ([0.1] * 3, ["3 values", "4 eligible", *NAMES]),
        ([0.1] * 5, ["5 values", "4 eligible"]),
        ([], ["0 values", "4 eligible"]),
        ({"blocks.2.*": 0.1, "*": 0.2}, ["blocks.2.*", *NAMES]),
        ({"fc1": 0.1, "*": 0.2}, ["'fc1'", *NAMES]),
        ({"head": 0.1, "*": 0.2}, ["'head'"]),
        ({"blocks.0.*": 0.1}, ["blocks.1.fc1"]),
        ({}, ["blocks.0.fc1"]),
    ],
)
def test_tau_that_does_not_fit_the_sites(model: nn.Module, tau: object, shown: list[str]) -> None:
    sites = find_sites(model, X)
    message = refusal(lambda: ExPrune(sites, StatsTest(tau, n=3)))
    assert all(part in message for part in shown)
    assert message == refusal(lambda: per_site(tau, [site for site in sites if site.eligible]))


def test_sites_with_too_few_terms_run_dense(model: nn.Module) -> None:
    """n + 1 terms are needed: with n = 8 only the last site, with 12 terms, remains; with n = 7 also those with 8."""
    for n, left in ((12, []), (11, NAMES[3:]), (8, NAMES[3:]), (7, [NAMES[0], *NAMES[2:]]), (5, NAMES)):
        if not left:
            continue
        run = ExPrune(find_sites(model, X), StatsTest(0.1, n=n))
        assert [site.name for site in run.sites if site.eligible] == left
        for name in set(NAMES) - set(left):
            site = by_name(run.sites)[name]
            assert f"{site.terms} terms" in site.reason
            assert f"{n + 1}" in site.reason


def test_n_that_leaves_no_site(model: nn.Module) -> None:
    message = refusal(lambda: ExPrune(find_sites(model, X), StatsTest(0.1, n=12)))
    assert "12 terms" in message
    assert "13" in message
    assert all(name in message for name in NAMES)


def test_a_model_without_a_relu() -> None:
    model = nn.Sequential(nn.Linear(3, 40), nn.GELU(), nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 2))
    message = refusal(lambda: ExPrune(find_sites(model, X.float()), StatsTest(0.1)))
    assert "2: feeds gelu, not a ReLU: StatsTest has no test for it; Optimal has one" in message


def test_no_sites_at_all() -> None:
    refusal(lambda: ExPrune([], StatsTest(0.1)))


# Restricting the sites


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (None, NAMES),
        ("*", NAMES),
        ("*.fc2", [NAMES[1], NAMES[3]]),
        (["blocks.0.fc1"], NAMES[:1]),
        (["blocks.1.fc2", "blocks.0.fc1"], [NAMES[0], NAMES[3]]),
        (("blocks.0.*", "*.fc1"), NAMES[:3]),
    ],
)
def test_select_sites(model: nn.Module, patterns: object, left: list[str]) -> None:
    sites = find_sites(model, X)
    selected = select_sites(sites, patterns)
    assert [site.name for site in selected] == [site.name for site in sites]
    assert [site.name for site in selected if site.eligible] == left
    for site, before in zip(selected, sites, strict=True):
        if before.eligible and site.name not in left:
            assert site.reason == "not selected"
        else:
            assert site.reason == before.reason
    run = pruned_pass(model, selected, StatsTest(0.4, n=3), X)
    assert [count.site.name for count in run.flops.sites] == left


@pytest.mark.parametrize(
    ("patterns", "shown"),
    [
        ("blocks.7.*", ["blocks.7.*", *NAMES]),
        (["*.fc1", "nothing"], ["nothing"]),
        ("head", ["head", "not an activation"]),  # it exists, and the reason is given
        ("stem", ["stem", "raw input"]),
    ],
)
def test_select_sites_that_are_none(model: nn.Module, patterns: object, shown: list[str]) -> None:
    sites = find_sites(model, X)
    message = refusal(lambda: select_sites(sites, patterns))
    assert all(part in message for part in shown)


def test_nothing_selected_is_no_site(model: nn.Module) -> None:
    message = refusal(lambda: ExPrune(select_sites(find_sites(model, X), []), StatsTest(0.1, n=3)))
    assert "not selected" in message


# A custom heuristic


class MostlyNegative(Heuristic):
    """Stop if the sum of the first terms is negative."""

    def stop(self, seen: Prefix) -> Tensor:
        return seen.s < 0


def test_a_heuristic_of_a_few_lines(model: nn.Module) -> None:
    """It needs no tau, and its test costs 1 by default."""
    sites = select_sites(find_sites(model, X), "blocks.0.fc1")
    run = pruned_pass(model, sites, MostlyNegative(n=4), X)
    block = model.blocks[0]
    with torch.no_grad():
        x = model.stem(X).relu()
        stopped = sum(float((x[i, :4] * block.fc1.weight[j, :4]).sum()) < 0 for i in range(len(X)) for j in range(6))
    assert 0 < stopped < 36
    (count,) = run.flops.sites
    assert count.pruned == stopped
    assert count.pruned_flops == 36 * 1 + stopped * 2 * 4 + (36 - stopped) * 2 * 8
    assert run.taus == {"blocks.0.fc1": None}


def test_a_heuristic_may_decide_by_site(model: nn.Module) -> None:
    class Only(Heuristic):
        def stop(self, seen: Prefix) -> Tensor:
            return torch.full_like(seen.s, seen.site.name == "blocks.1.fc2", dtype=torch.bool)

        def overhead(self, stage: int, site: Site) -> int:
            return 0

    run = pruned_pass(model, find_sites(model, X), Only(n=2), X)
    assert {c.site.name: c.pruned for c in run.flops.sites} == dict.fromkeys(NAMES[:3], 0) | {NAMES[3]: 6 * 8}
    assert run.flops.dense - run.flops.pruned == 6 * 8 * 2 * (12 - 2)


def test_a_heuristic_checks_its_own_range() -> None:
    class Share(MostlyNegative):
        tau_range = (0.0, 1.0)

    assert "[0, 1]" in refusal(lambda: Share(1.5))


def test_a_heuristic_must_say_when_to_stop() -> None:
    class Nothing(Heuristic):
        pass

    with pytest.raises(TypeError, match="stop"):
        Nothing()


def test_a_setting_error_is_a_value_error() -> None:
    assert issubclass(SettingError, ValueError)


@pytest.mark.parametrize("stages", [(), (0, 2), (4, 4), (4, 2)])
def test_stages_must_ascend(model: nn.Module, stages: tuple[int, ...]) -> None:
    heuristic = MostlyNegative()
    heuristic.stages = stages
    assert f"stages={list(stages)}" in refusal(lambda: ExPrune(find_sites(model, X), heuristic))
