"""The error that wrong settings raise. It is in a module of its own, so that raising it does not import torch."""


class SettingError(ValueError):
    """A setting, an input file or a model cannot be used as requested.

    The message is one line. It names what is wrong, its value, and what would be right. The command line prints only
    this line and exits with code 1. Any other exception is a bug and keeps its traceback.
    """
