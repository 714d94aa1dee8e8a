"""Keep freed memory for the next tensors."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h), and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _NEVER = -1, -3, 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors. Without glibc, this does nothing.

    By default, glibc returns each large block to the system at once, and the system clears every page of the next one.
    This takes a tenth of the time of an evaluation of ResNet18 (docs/usage.md, speed).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
