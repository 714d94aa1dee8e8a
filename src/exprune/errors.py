"""The one error that a wrong setting raises. It stands by itself, so that what raises it need not import torch."""


class SettingError(ValueError):
    """A setting, an input file or a model that cannot be used as asked.

    The message is one line: what is wrong, its value, and what would be right. The command line prints
    that line alone and exits with 1; everything else that is raised is a bug and keeps its traceback.
    """
