"""Handwritten digits from scikit-learn: the embedded image data."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from exprune.lab.examples.images.data import Images


def read_digits(data_dir: Path, cache_dir: Path) -> Images:
    """1,797 real 8x8 digits, enlarged to 3x32x32; every fifth one is for testing. Both folders are unused."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    pixels = torch.nn.functional.interpolate(pixels, size=32, mode="bilinear", antialias=False)
    images = pixels.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    test = torch.arange(len(images)) % 5 == 0
    return Images(images[~test], labels[~test], images[test], labels[test])
