"""Handwritten digits that come with scikit-learn: the embedded image data."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from exprune.lab.data.images import Images


def read_digits(data_dir: Path, cache_dir: Path) -> Images:
    """1,797 real 8x8 digits in three equal channels; every fifth one tests. Both folders go unused."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    images = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    test = torch.arange(len(images)) % 5 == 0
    return Images(images[~test], labels[~test], images[test], labels[test])
