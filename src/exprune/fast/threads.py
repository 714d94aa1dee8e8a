"""Work on some rows in as many threads as torch may use."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Kernels release the GIL. Handing work to a Python thread takes 35 to 100 microseconds; while it waits it does not
# spin, as OpenMP's threads do, which would take a core from torch's.
_pool = ThreadPoolExecutor(thread_name_prefix="exprune")


def parts_of(rows: int) -> int:
    """How many threads are to share so many rows: ``torch.get_num_threads()``, or fewer."""
    return min(torch.get_num_threads(), max(1, rows // _LEAST))


def shared(work: Callable[[int, int, int], int], rows: int, threads: int) -> int:
    """The sum of ``work(part, low, high)`` over so many parts of the rows, each in a thread."""
    bounds = [rows * part // threads for part in range(threads + 1)]
    others = [_pool.submit(work, part, bounds[part], bounds[part + 1]) for part in range(1, threads)]
    return work(0, 0, bounds[1]) + sum(other.result() for other in others)


_LEAST = 256  # rows of a part: fewer are done before another thread has begun
