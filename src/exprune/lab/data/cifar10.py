"""CIFAR-10 from a mirror of JPEG files: other pixels than the official ones, the same images and divisions."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from exprune.core.errors import SettingError
from exprune.lab.data.images import Images
from exprune.lab.files import load_tensors, save_tensors

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}
JPEG_SHA256 = "ccd685964d466139e29036856fb403a3cf32f606846d1ee448246186b038f60b"


def read_cifar10_jpeg(data_dir: Path, cache_dir: Path) -> Images:
    """The 60,000 images of ``data_dir/cifar10_jpeg/cifar10_jpeg.tar.xz``, decoded once and cached.

    Raises:
        SettingError: the archive is missing, not the one that is known, or holds an image that does not decode.
    """
    cache = cache_dir / "images" / "cifar10_jpeg.safetensors"
    if not cache.exists():
        tensors = _decode(data_dir / "cifar10_jpeg" / "cifar10_jpeg.tar.xz")
        save_tensors(cache, tensors, {"archive": JPEG_SHA256})
    tensors, _ = load_tensors(cache)
    return Images(tensors["train"], tensors["train_labels"], tensors["test"], tensors["test_labels"])


def _decode(archive: Path) -> dict[str, torch.Tensor]:
    if not archive.is_file():
        raise SettingError(f"{archive} is missing: point EXPRUNE_DATA_DIR at a folder that holds it")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != JPEG_SHA256:
        raise SettingError(f"{archive}: SHA-256 {found}, expected {JPEG_SHA256}; copy it again")
    images: dict[str, list[tuple[str, int, np.ndarray]]] = {part: [] for part in SIZES}
    with tarfile.open(archive) as files, tqdm(total=60_000, desc="decoding", disable=None, leave=False) as bar:
        for member in files:
            path = Path(member.name)
            if path.suffix == ".jpg" and len(path.parts) >= 3 and path.parts[-3] in images:
                images[path.parts[-3]].append((member.name, CLASSES.index(path.parts[-2]), _pixels(files, member)))
                bar.update()
    tensors = {}
    for part, rows in images.items():
        if len(rows) != SIZES[part]:
            raise SettingError(f"{archive}: {len(rows)} {part} images, expected {SIZES[part]}")
        rows.sort(
            key=lambda row: row[0].rpartition("/")[2] + row[0]
        )  # classes interleaved, whatever the archive's order
        tensors[part] = torch.from_numpy(np.stack([pixels for *_, pixels in rows])).permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}_labels"] = torch.tensor([label for _, label, _ in rows])
    return tensors


def _pixels(files: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(files.extractfile(member).read())).convert("RGB")
    except OSError as error:
        raise SettingError(f"{member.name}: not a JPEG image that decodes ({error})") from error
    pixels = np.asarray(image)
    if pixels.shape != (32, 32, 3):
        raise SettingError(f"{member.name}: {pixels.shape[1]}x{pixels.shape[0]} pixels, expected 32x32")
    return pixels
