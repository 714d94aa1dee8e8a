"""The processor that a benchmark ran on."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, with the instructions that torch uses: ``AMD EPYC (AVX512)``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    name = name.replace("(R)", "").replace(" Processor", "")
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
