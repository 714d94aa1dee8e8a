"""Freed memory is kept for reuse where the C library supports it."""

import subprocess
import sys

import pytest

from exprune.lab import freed_memory

_FAULTS = """
import ctypes, resource, sys, torch
from exprune.lab.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2_000_000) + 1  # two blocks of 8 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
usual = faults()
keep_freed_memory()
faults()  # the first blocks are new
print(usual, faults(), hasattr(ctypes.CDLL(None), "mallopt"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_the_next_tensor_gets_the_pages_of_the_last() -> None:
    printed = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True).stdout.split()
    usual, kept = map(int, printed[:2])
    assert printed[2] == "False" or kept < usual / 5  # 10 rounds; a kernel may have taken a block back


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.sys, "platform", "win32")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", None)  # not called: Windows has no library of this name
    freed_memory.keep_freed_memory()
