"""What tensors free is kept for those to come."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h), and the largest value that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _NEVER = -1, -3, 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors; on systems without glibc nothing happens.

    By default glibc hands each large block back at once, and the system clears every page of the next one: a tenth of
    the time that evaluating ResNet18 takes (docs/usage.md, speed).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
