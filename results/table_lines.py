"""Lines of a table as the documents hold them."""


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(*columns: str) -> list[str]:
    """The two lines above a table's rows."""
    return [line(*columns), "|---" * len(columns) + "|"]
