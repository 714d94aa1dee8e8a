"""The setting that every data set has: use only so many inputs."""

from exprune.core.errors import SettingError


def checked_limit(limit: int | None, inputs: str, name: str = "limit") -> int | None:
    """``limit``, where it is at least 1 or None for all; raises SettingError elsewhere."""
    if limit is not None and limit < 1:
        raise SettingError(f"data.{name}={limit}: at least 1, or null for all {inputs}")
    return limit
