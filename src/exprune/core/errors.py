"""The one error that a wrong setting raises."""

from exprune.errors import SettingError

__all__ = ["SettingError"]
