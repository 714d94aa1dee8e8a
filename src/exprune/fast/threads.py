"""Work space of each thread, and work on ranges of rows in as many threads as torch may use."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray


class _Room(threading.local):
    def __init__(self) -> None:
        self.rows, self.x = np.empty(0, np.int32), np.empty(0, np.float32)


_room = _Room()


def room_to_work(outputs: int, terms: int) -> tuple[NDArray, NDArray]:
    """Work space of a kernel in this thread: int32 (at least outputs,) and float32 (at least terms,).

    A thread runs no other Python code while it is in a kernel, so all layers of all contexts can share it.
    """
    if len(_room.rows) < outputs:
        _room.rows = np.empty(outputs, np.int32)
    if len(_room.x) < terms:
        _room.x = np.empty(terms, np.float32)
    return _room.rows, _room.x


def parts_of(rows: int) -> int:
    """The number of threads that share so many rows: ``torch.get_num_threads()`` or fewer."""
    return min(torch.get_num_threads(), max(1, rows // _LEAST))


def shared(work: Callable[[int, int, int], int], rows: int, threads: int) -> int:
    """The sum of ``work(part, low, high)`` over equal parts of the rows, one thread per part."""
    bounds = [rows * part // threads for part in range(threads + 1)]
    others = [_pool.submit(work, part, bounds[part], bounds[part + 1]) for part in range(1, threads)]
    return work(0, 0, bounds[1]) + sum(other.result() for other in others)


_LEAST = 256  # rows of a part; fewer would be done before another thread begins


def _new_pool() -> ThreadPoolExecutor:
    # Kernels release the GIL. Handing work to a Python thread takes 35 to 100 microseconds. A waiting Python thread
    # does not spin as OpenMP's threads do, so it takes no core from torch.
    return ThreadPoolExecutor(thread_name_prefix="exprune")


def _replace_pool() -> None:
    global _pool
    _pool = _new_pool()


_pool = _new_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_pool)  # a forked process has none of the threads
