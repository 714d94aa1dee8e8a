"""CIFAR-10: the official archive, and a mirror of JPEG files with the same images and split but other pixels."""

import hashlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from exprune.core.errors import SettingError
from exprune.files import kept, load_tensors, save_tensors
from exprune.lab.examples.images.data import Images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}
OFFICIAL_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
JPEG_SHA256 = "ccd685964d466139e29036856fb403a3cf32f606846d1ee448246186b038f60b"


def read_cifar10(data_dir: Path, cache_dir: Path) -> Images:
    """The official 60,000 images from ``data_dir/cifar10/cifar-10-python.tar.gz``, or else downloaded; unpacked once.

    Raises:
        SettingError: If the archive is not the official one, or cannot be downloaded.
    """
    given = data_dir / "cifar10" / CIFAR10.filename
    return _cached(cache_dir / "images" / "cifar10.safetensors", OFFICIAL_SHA256, lambda: _official(given, cache_dir))


def read_cifar10_jpeg(data_dir: Path, cache_dir: Path) -> Images:
    """The 60,000 images of ``data_dir/cifar10_jpeg/cifar10_jpeg.tar.xz``, decoded once and cached.

    Raises:
        SettingError: If the archive is missing or not the expected one, or if an image cannot be decoded.
    """
    archive = data_dir / "cifar10_jpeg" / "cifar10_jpeg.tar.xz"
    return _cached(cache_dir / "images" / "cifar10_jpeg.safetensors", JPEG_SHA256, lambda: _decode(archive))


def _cached(cache: Path, sha256: str, unpack: Callable[[], dict[str, Tensor]]) -> Images:
    images = kept(cache, lambda path: _read(path, sha256), "it is made anew")
    if images is None:
        save_tensors(cache, unpack(), {"archive": sha256})
        images = _read(cache, sha256)
    return images


def _read(cache: Path, sha256: str) -> Images:
    tensors, metadata = load_tensors(cache)
    if metadata.get("archive") != sha256:
        raise ValueError(f"made of an archive of SHA-256 {metadata.get('archive')}, not {sha256}")
    for part in SIZES:
        images, labels = tensors[part], tensors[f"{part}_labels"]
        if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or labels.shape != images.shape[:1]:
            raise ValueError(f"its {part} images are not of 3x32x32 bytes with a label each")
    return Images(tensors["train"], tensors["train_labels"], tensors["test"], tensors["test_labels"])


def _official(given: Path, cache_dir: Path) -> dict[str, Tensor]:
    archive = given
    if not given.is_file():
        archive = cache_dir / "downloads" / CIFAR10.filename
        if not archive.is_file():
            _download(CIFAR10.url, archive, given)
    _verify(archive, OFFICIAL_SHA256)
    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as files:
            if hasattr(tarfile, "data_filter"):
                files.extractall(folder, filter="data")
            else:  # Python before 3.11.4; the archive's SHA-256 was checked
                files.extractall(folder)
        for part in SIZES:
            images = CIFAR10(folder, train=part == "train")  # checks every file's MD5 before unpickling it
            tensors[part] = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
            tensors[f"{part}_labels"] = torch.tensor(images.targets)
    return tensors


def _download(url: str, archive: Path, given: Path) -> None:
    """Download the whole archive or nothing: it gets its name only after its checksum was verified."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(archive), OFFICIAL_SHA256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise SettingError(f"{url}: not downloaded ({error}); put the archive at {given}, or try again") from error


def _verify(archive: Path, sha256: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SettingError(f"{archive}: SHA-256 {found}, expected {sha256}; delete it and copy it again")


def _decode(archive: Path) -> dict[str, Tensor]:
    if not archive.is_file():
        raise SettingError(f"{archive} is missing: point EXPRUNE_DATA_DIR at a folder that holds it")
    _verify(archive, JPEG_SHA256)
    images: dict[str, list[tuple[str, int, np.ndarray]]] = {part: [] for part in SIZES}
    with tarfile.open(archive) as files, tqdm(total=60_000, desc="decoding", disable=None, leave=False) as bar:
        for member in files:
            path = Path(member.name)
            if path.suffix == ".jpg" and len(path.parts) >= 3 and path.parts[-3] in images:
                part, label, _ = path.parts[-3:]
                if label not in CLASSES:
                    raise SettingError(f"{member.name}: {label!r} is not a class of CIFAR-10")
                images[part].append((member.name, CLASSES.index(label), _pixels(files, member)))
                bar.update()
    tensors = {}
    for part, rows in images.items():
        if len(rows) != SIZES[part]:
            raise SettingError(f"{archive}: {len(rows)} {part} images, expected {SIZES[part]}")
        rows.sort(key=lambda row: row[0].rpartition("/")[2] + row[0])  # interleaves classes, in a fixed order
        tensors[part] = torch.from_numpy(np.stack([pixels for *_, pixels in rows])).permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}_labels"] = torch.tensor([label for _, label, _ in rows])
    return tensors


def _pixels(files: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(cast(IO[bytes], files.extractfile(member)).read())).convert("RGB")
    except OSError as error:
        raise SettingError(f"{member.name}: not a JPEG image that decodes ({error})") from error
    pixels = np.asarray(image)
    if pixels.shape != (32, 32, 3):
        raise SettingError(f"{member.name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, expected 32x32")
    return pixels
