"""Synthetic tones with harmonics and noise for pitch detection, without a download."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData

RATE, SAMPLES = 16_000, 1024  # samples per second, and per frame
_LOWEST, _HIGHEST = 50.0, 1000.0  # Hz
_HARMONICS = 16
_PARTS = ("train", "valid", "test")


def tones(count: int, noise: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024) with mean 0 and standard deviation 1, and the frequencies (count,) of their tones in Hz.

    Frequencies are drawn uniformly on a logarithmic scale. Each harmonic has a random phase, and an amplitude that
    falls with its number at a random rate.

    Args:
        count: The number of frames.
        noise: The smallest and the largest signal-to-noise ratio in dB.
        generator: The random generator.
    """
    frequency = _LOWEST * (_HIGHEST / _LOWEST) ** torch.rand(count, generator=generator)
    dullness, ratio = 2 * torch.rand(count, generator=generator), torch.rand(count, generator=generator)
    seconds = torch.arange(SAMPLES) / RATE
    frames = torch.zeros(count, SAMPLES)
    for harmonic in range(1, _HARMONICS + 1):
        loud = torch.rand(count, generator=generator) * harmonic**-dullness * (harmonic * frequency < RATE / 2)
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        frames += loud[:, None] * torch.sin(2 * math.pi * harmonic * frequency[:, None] * seconds + phase)
    decibels = noise[0] + (noise[1] - noise[0]) * ratio
    hiss = torch.randn(count, SAMPLES, generator=generator)
    frames += hiss * frames.std(1, keepdim=True) * 10 ** (-decibels[:, None] / 20)
    frames -= frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True), frequency


class ToneData(SplitData):
    """Batches of (frames, frequencies) from `tones`, one frame per tone. It does not train.

    Args:
        frames: The number of frames of each part; each part has its own seed.
        noise: See `tones`.
        eval_batch_size: The batch size.
        limit: Keep only this number of frames of each part; None keeps all.
    """

    def __init__(self, frames: int, noise: tuple[float, float], eval_batch_size: int, limit: int | None = None) -> None:
        super().__init__()
        if frames < 1:
            raise SettingError(f"data.frames={frames}: must be at least 1")
        least, most = noise
        if not least <= most:
            raise SettingError(f"data.noise=[{least}, {most}]: the least signal-to-noise ratio in dB, then the most")
        self.frames, self.noise, self.eval_batch_size = frames, (float(least), float(most)), eval_batch_size
        self.limit = limit
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        for seed, part in enumerate(_PARTS):
            frames, frequencies = tones(self.frames, self.noise, torch.Generator().manual_seed(seed))
            self.parts[part] = TensorDataset(frames[: self.limit], frequencies[: self.limit])

    def train_dataloader(self) -> None:
        raise SettingError("a pretrained network is not trained here; use evaluate.py")

    def examples(self, part: str) -> TensorDataset:
        return self.parts[part]

    def batches(self, examples: Any) -> list[tuple[Tensor, ...]]:
        return [examples[rows] for rows in torch.arange(len(examples)).split(self.eval_batch_size)]
