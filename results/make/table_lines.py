"""Lines of a table as the documents hold them."""

from collections.abc import Sequence

NOT_YET = "not measured yet"


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(*columns: str) -> list[str]:
    """The two lines above a table's rows."""
    return [line(*columns), "|---" * len(columns) + "|"]


def not_yet(name: str, columns: Sequence[str]) -> str:
    """The line of a network that has no table yet."""
    return line(name, NOT_YET, *[""] * (len(columns) - 2))
