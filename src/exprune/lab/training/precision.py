"""In which precision to train: bfloat16 where the device is faster in it."""

import functools
import logging
import time

import torch
from torch import nn

log = logging.getLogger(__name__)


def training_precision(wanted: str, device: torch.device) -> str:
    """``wanted``, but float32 in place of ``bf16-mixed`` where that is no faster on ``device``; says which, and why.

    Processors without instructions for bfloat16 compute in it all the same, some of them many times slower. What is
    learned is the same network in either, so what its weights are called does not depend on it.
    """
    if wanted not in ("bf16-mixed", "bf16"):
        return wanted
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"{torch.cuda.get_device_name(device)} has {'it' if faster else 'no bfloat16'}"
    else:
        times = _times_as_long(device)
        faster, why = times < 1, f"a step of a small network takes {times:.2f} times as long in it as in float32 here"
    log.info("training in %s: %s", "bfloat16 (bf16-mixed)" if faster else "float32, not bfloat16 (bf16-mixed)", why)
    return wanted if faster else "32-true"


@functools.cache
def _times_as_long(device: torch.device) -> float:
    """How long a convolution and a linear layer take forward and back in bfloat16, as a multiple of float32."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):  # a training draws the same numbers whether this was measured or not
        # Of many rows, so that it is products that take the time, as in training, and not the weights' conversion.
        network = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.Flatten(2), nn.Linear(16 * 16, 512))
        images = torch.randn(16, 64, 16, 16)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.to(device, memory_format=torch.channels_last)

    def seconds(bfloat16: bool) -> float:
        # On a CPU, time of this process on one thread: what else runs on the machine makes no difference to it.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = network(images).float().square().mean()
        loss.backward()
        loss.item()  # a device that computes on its own has finished then
        return clock() - start

    torch.set_num_threads(1)
    try:
        taken = [(seconds(True), seconds(False)) for _ in range(4)][1:]  # the first round prepares the kernels
    finally:
        torch.set_num_threads(threads)
    bfloat16, float32 = (min(column) for column in zip(*taken, strict=True))
    return bfloat16 / float32
