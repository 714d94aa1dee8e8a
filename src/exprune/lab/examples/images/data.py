"""Images as tensors in memory, normalised and augmented in batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from exprune.core.errors import SettingError
from exprune.lab.data.splits import SplitData

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10, as in the paper


@dataclass(frozen=True)
class Images:
    """``images`` (count, 3, H, W) as uint8 and ``labels`` (count,), of the training and the test set."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def augment(images: Tensor, padding: int, flip: bool, cutout: int, generator: torch.Generator) -> Tensor:
    """Crop each padded image at random, flip it at random, and set a random square of ``cutout`` pixels to 0.

    Images have the shape (batch, C, H, W) before and after. The square may extend over the edge, as in DeVries and
    Taylor 2017.
    """
    batch, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch).view(-1, 1, 1)
    # Indexing the spatial dimensions together moves them to the front: (batch, H, W, C).
    images = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    if cutout:
        y, x = (_within(size, cutout, batch, generator) for size in (height, width))
        images.masked_fill_((y[:, :, None] & x[:, None, :])[..., None], 0)
    return images.permute(0, 3, 1, 2)


def _within(size: int, span: int, batch: int, generator: torch.Generator) -> Tensor:
    """For each image of a batch, the ``span`` positions around a random one (batch, size), bool."""
    first = torch.randint(size, (batch, 1), generator=generator) - span // 2
    positions = torch.arange(size)
    return (positions >= first) & (positions < first + span)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize (batch, C, H, W) to (batch, C, size, size), with antialiasing if that is smaller."""
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


class ImageLoader:
    """Batches of (normalised images, labels) from a data set in memory; shuffled and augmented for training.

    ``size`` is called once per epoch, and returns the side that larger training images are reduced to; 0 reduces none.
    """

    def __init__(
        self,
        images: Dataset,
        batch_size: int,
        train: bool = False,
        padding: int = 0,
        flip: bool = False,
        cutout: int = 0,
        size: Callable[[], int] = lambda: 0,
    ) -> None:
        self.images, self.batch_size, self.train = images, batch_size, train
        self.padding, self.flip, self.cutout, self.size = padding, flip, cutout, size

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)  # type: ignore[arg-type]
        return full or min(rest, 1) if self.train else full + min(rest, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.images))  # type: ignore[arg-type]
        if self.train:
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
            order = torch.randperm(len(order), generator=generator)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        size = self.size() if self.train else 0
        for chosen in order.split(self.batch_size)[: len(self)]:
            images, labels = self.images[chosen]
            images = (images.float() / 255 - mean) / std
            if self.train:
                images = augment(images, self.padding, self.flip, self.cutout, generator)
                images = resized(images, size) if 0 < size < images.shape[-1] else images
            yield images.contiguous(memory_format=torch.channels_last), labels


class ImageData(SplitData):
    """Images in memory. The training set is split into train and valid with a fixed seed.

    Args:
        read: Returns the images, given the data and the cache folder.
        data_dir: The data folder.
        cache_dir: The cache folder.
        valid: The number of training images used for validation.
        padding: The padding of the random crop.
        flip: Whether images are flipped at random.
        cutout: The side of the square that is blanked in each image; 0 for none.
        reduced: ``size``, the side that images are reduced to in the first epochs of a training, which makes them
            cheaper ("progressive resizing"), and ``share``, the share of these epochs; None reduces none.
        batch_size: The batch size of training.
        eval_batch_size: The batch size of measurements.
        limit: Keep only this number of images of each part, for quick tries; None keeps all.
        size: The side that all images are resized to first; None leaves them unchanged.
    """

    def __init__(
        self,
        read: Callable[[Path, Path], Images],
        data_dir: str,
        cache_dir: str,
        valid: int,
        padding: int,
        flip: bool,
        cutout: int,
        reduced: Mapping[str, Any] | None,
        batch_size: int,
        eval_batch_size: int,
        limit: int | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise SettingError(f"data.size={size}: must be at least 1 pixel, or null for images as they are")
        self.read = read
        self.data_dir, self.cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.size, self.valid, self.padding, self.flip, self.cutout = size, valid, padding, flip, cutout
        self.reduced = reduced
        self.batch_size, self.eval_batch_size, self.limit = batch_size, eval_batch_size, limit
        self.parts: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        images = self.read(self.data_dir, self.cache_dir)
        if not 1 <= self.valid < len(images.train):
            raise SettingError(f"data.valid={self.valid}: must be at least 1, and fewer than all {len(images.train)}")
        if self.size is not None:
            images = replace(images, train=resized(images.train, self.size), test=resized(images.test, self.size))
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(42))
        train, valid = order[: -self.valid][: self.limit], order[-self.valid :][: self.limit]
        self.parts = {
            "train": (images.train[train], images.train_labels[train]),
            "valid": (images.train[valid], images.train_labels[valid]),
            "test": (images.test[: self.limit], images.test_labels[: self.limit]),
        }

    def examples(self, part: str) -> TensorDataset:
        return TensorDataset(*self.parts[part])

    def batches(self, examples: Dataset) -> ImageLoader:
        return ImageLoader(examples, self.eval_batch_size)

    def train_dataloader(self) -> ImageLoader:
        images = self.examples("train")
        return ImageLoader(images, self.batch_size, True, self.padding, self.flip, self.cutout, self._size)

    def _size(self) -> int:
        """The side that this epoch's training images are reduced to; 0 if they are not."""
        if self.reduced is None or self.trainer is None or self.trainer.max_epochs is None:
            return 0
        if self.trainer.current_epoch >= self.reduced["share"] * self.trainer.max_epochs:
            return 0
        return self.reduced["size"]
