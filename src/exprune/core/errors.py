"""Re-export of the error that wrong settings raise."""

from exprune.errors import SettingError

__all__ = ["SettingError"]
