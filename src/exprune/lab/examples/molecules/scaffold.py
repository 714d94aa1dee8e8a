"""The scaffold split, which keeps molecules with the same skeleton in the same part."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from exprune.core.errors import SettingError


def scaffold_split(
    scaffolds: Sequence[int | str | None], train: float = 0.8, valid: float = 0.1, seed: int | None = None
) -> dict[str, list[int]]:
    """Indices of ``train``, ``valid`` and ``test``. Each group of molecules goes into the first part that has room.

    By default, the largest groups come first, so ``test`` consists of skeletons that occur once. On ogbg-molhiv this is
    the official split (docs/method.md, section 6). With a ``seed``, only groups that would fill half of a smaller part
    come first, and the others follow in random order, so that all parts are similar.

    Args:
        scaffolds: The group of each molecule. A molecule without a scaffold (None) is a group of its own.
        train: The share of ``train``.
        valid: The share of ``valid``.
        seed: See above.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for index, name in enumerate(scaffolds):
        groups[(index,) if name is None else name].append(index)
    room_train, room_valid = train * len(scaffolds), (train + valid) * len(scaffolds)
    ordered = sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True)
    if seed is not None:
        half = min(valid, 1 - train - valid) * len(scaffolds) / 2
        first = sum(len(group) > half for group in ordered)
        chance = torch.randperm(len(ordered) - first, generator=torch.Generator().manual_seed(seed)).tolist()
        ordered = ordered[:first] + [ordered[first + index] for index in chance]
    split: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for group in ordered:
        if len(split["train"]) + len(group) <= room_train:
            split["train"] += group
        elif len(split["train"]) + len(split["valid"]) + len(group) <= room_valid:
            split["valid"] += group
        else:
            split["test"] += group
    return split


def checked_split(split: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check ``data.split``, the options of `scaffold_split`; None means no options.

    Raises:
        SettingError: If they are not valid.
    """
    if split is None:
        return {}
    options = dict(split) if isinstance(split, Mapping) else {}
    shares: list[Any] = [options.get("train"), options.get("valid")]
    seed = 0 if options.get("seed") is None else options["seed"]
    known = options.keys() <= {"train", "valid", "seed"} and isinstance(seed, int) and 0 <= seed < 2**63
    if not (known and all(isinstance(share, int | float) and share > 0 for share in shares) and sum(shares) < 1):
        raise SettingError(
            f"data.split={split}: give train and valid, shares above 0 that leave some for test, and seed, a whole "
            "number or null; or give null, for the split of the Open Graph Benchmark"
        )
    return options
