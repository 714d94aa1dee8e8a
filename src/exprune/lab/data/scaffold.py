"""The scaffold split: molecules with one skeleton stay on one side."""

from collections import defaultdict
from collections.abc import Sequence


def scaffold_split(scaffolds: Sequence[str | None], train: float = 0.8, valid: float = 0.1) -> dict[str, list[int]]:
    """Indices of ``train``, ``valid`` and ``test``: the largest groups first, into the first part that has room.

    ``scaffolds`` names each molecule's group; one without a scaffold (``None``) is a group of its own. On
    ogbg-molhiv this is the official split (docs/method.md, section 6).
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for index, name in enumerate(scaffolds):
        groups[index if name is None else name].append(index)
    room_train, room_valid = train * len(scaffolds), (train + valid) * len(scaffolds)
    split: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(split["train"]) + len(group) <= room_train:
            split["train"] += group
        elif len(split["train"]) + len(split["valid"]) + len(group) <= room_valid:
            split["valid"] += group
        else:
            split["test"] += group
    return split
