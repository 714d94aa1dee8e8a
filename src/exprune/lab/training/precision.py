"""Choose the precision of training: bfloat16 on devices where it is faster."""

import functools
import logging
import time

import torch
from torch import nn

log = logging.getLogger(__name__)


def training_precision(wanted: str, device: torch.device) -> str:
    """``wanted``, or float32 in place of ``bf16-mixed`` if that is not faster on ``device``; logs the choice and why.

    Processors without bfloat16 instructions emulate them, some of them many times slower. The choice does not change
    which network is learned, so checkpoint names do not depend on it.
    """
    if wanted not in ("bf16-mixed", "bf16"):
        return wanted
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"{torch.cuda.get_device_name(device)} {'supports' if faster else 'does not support'} bfloat16"
    else:
        times = _times_as_long(device)
        faster, why = (
            times < 1,
            f"a step of a small network takes {times:.2f} times as long as in float32 here",
        )
    log.info("training in %s: %s", "bfloat16 (bf16-mixed)" if faster else "float32, not bfloat16 (bf16-mixed)", why)
    return wanted if faster else "32-true"


@functools.cache
def _times_as_long(device: torch.device) -> float:
    """The time of a convolution and a linear layer, forward and backward, in bfloat16 as a multiple of float32."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):  # so that training draws the same numbers with or without this measurement
        # Many rows, so that matrix products dominate as in training, not the conversion of weights.
        network = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.Flatten(2), nn.Linear(16 * 16, 512))
        images = torch.randn(16, 64, 16, 16)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.to(device, memory_format=torch.channels_last)

    def seconds(bfloat16: bool) -> float:
        # On a CPU, the process time of one thread, which does not depend on other work on the machine.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = network(images).float().square().mean()
        loss.backward()
        loss.item()  # waits for devices that compute asynchronously
        return clock() - start

    torch.set_num_threads(1)
    try:
        taken = [(seconds(True), seconds(False)) for _ in range(4)][1:]  # the first round prepares the kernels
    finally:
        torch.set_num_threads(threads)
    bfloat16, float32 = (min(column) for column in zip(*taken, strict=True))
    return bfloat16 / float32
