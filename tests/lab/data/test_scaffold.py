"""Compares the scaffold split with a reference that does not sort and computes with exact integers."""

from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exprune.lab.examples.molecules.scaffold import scaffold_split


def reference(scaffolds: list[str | None]) -> dict[str, list[int]]:
    """Take the largest remaining group (the later one of a tie) and try 80 %, then 90 %, then the rest."""
    groups = [[i] for i, name in enumerate(scaffolds) if name is None]
    for name in {name for name in scaffolds if name is not None}:
        groups.append([i for i, other in enumerate(scaffolds) if other == name])
    split: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    while groups:
        largest = groups[0]
        for group in groups:
            if len(group) > len(largest) or (len(group) == len(largest) and min(group) > min(largest)):
                largest = group
        groups.remove(largest)
        if 10 * (len(split["train"]) + len(largest)) <= 8 * len(scaffolds):
            part = "train"
        elif 10 * (len(split["train"]) + len(split["valid"]) + len(largest)) <= 9 * len(scaffolds):
            part = "valid"
        else:
            part = "test"
        split[part] = split[part] + largest
    return split


names = st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g"])
skewed = st.one_of(st.none(), st.just("a"), st.just("b"), names)


@settings(max_examples=300, deadline=None)
@given(st.lists(skewed, max_size=60))
@example([])
@example([None] * 10)
@example([""] * 10)
@example(["a"] * 8 + ["b", "c"])
def test_split_is_that_of_the_reference(scaffolds: list[str | None]) -> None:
    split = scaffold_split(scaffolds)
    assert split == reference(scaffolds)
    assert sorted(chain.from_iterable(split.values())) == list(range(len(scaffolds)))


def test_by_hand() -> None:
    # ten molecules, room for 8 and 9: "a" (4), "b" (2), then the single ones from the last to the first
    scaffolds = ["x", "a", "a", None, "b", "a", None, "a", "b", "y"]
    assert scaffold_split(scaffolds) == {"train": [1, 2, 5, 7, 4, 8, 9, 6], "valid": [3], "test": [0]}


def test_a_group_without_room_is_passed_over() -> None:
    # of 20, room for 16 and 18: "b" (5) fits behind "a" (13) only into valid, where "c" (2) then finds train
    scaffolds = ["a"] * 13 + ["b"] * 5 + ["c"] * 2
    split = scaffold_split(scaffolds)
    assert {name: len(part) for name, part in split.items()} == {"train": 15, "valid": 5, "test": 0}
    # and (13 + 6 > 18) a group of 6 goes to test while smaller ones still fill train and valid
    split = scaffold_split(["a"] * 13 + ["b"] * 6 + ["c"])
    assert {name: len(part) for name, part in split.items()} == {"train": 14, "valid": 0, "test": 6}


@settings(max_examples=300, deadline=None)
@given(st.lists(skewed, max_size=60), st.sampled_from([(0.8, 0.1), (0.7, 0.1), (0.5, 0.2)]), st.integers(0, 9))
def test_groups_in_an_order_by_chance_stay_together(
    scaffolds: list[str | None], shares: tuple[float, float], seed: int
) -> None:
    train, valid = shares
    split = scaffold_split(scaffolds, train, valid, seed)
    assert sorted(chain.from_iterable(split.values())) == list(range(len(scaffolds)))
    assert len(split["train"]) <= train * len(scaffolds)
    for name in set(scaffolds) - {None}:
        members = {i for i, other in enumerate(scaffolds) if other == name}
        assert sum(bool(members & set(part)) for part in split.values()) == 1


def test_the_seed_draws_the_order() -> None:
    scaffolds = ["large"] * 12 + [f"{k // 2}" for k in range(88)]
    one, again, other = (scaffold_split(scaffolds, 0.7, 0.1, seed) for seed in (0, 0, 1))
    assert one == again != other
    for split in (one, other):
        assert [len(part) for part in split.values()] == [70, 10, 20]
        # 12 would fill valid, where an order by chance alone may put them
        assert set(range(12)) < set(split["train"])
    assert one["train"][12:] != sorted(one["train"][12:])


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_alike_under_an_order_by_chance(seed: int) -> None:
    """Each part gets its share of 100 pairs and 100 singles; with the largest first, test would get no pair."""
    scaffolds = [f"{k // 2 if k < 200 else k}" for k in range(300)]
    single = set(range(200, 300))
    by_size, by_chance = scaffold_split(scaffolds, 0.7, 0.1), scaffold_split(scaffolds, 0.7, 0.1, seed)
    assert set(by_size["test"]) <= single
    for part in by_chance.values():
        assert len(single & set(part)) / len(part) == pytest.approx(1 / 3, abs=0.25)
