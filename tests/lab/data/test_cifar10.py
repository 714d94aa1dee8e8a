"""CIFAR-10's two archives are read correctly, or refused in one line with nothing left behind."""

import hashlib
import io
import pickle
import tarfile
import urllib.error
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from exprune.lab.examples.images import cifar10
from exprune.lab.examples.images.cifar10 import CLASSES, read_cifar10, read_cifar10_jpeg

from .conftest import Refused


def archive(path: Path, files: Mapping[str, bytes]) -> str:
    """Write a tar archive, compressed as its name says, and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def jpeg(shade: int, size: int = 32) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The members of a mirror with 20 training and 10 test images; the shade of an image identifies it."""
    monkeypatch.setattr(cifar10, "SIZES", {"train": 20, "test": 10})
    files = {}
    for part, each in (("test", 1), ("train", 2)):
        for label, name in enumerate(CLASSES):
            for index in range(each):
                files[f"{part}/{name}/{index:04d}.jpg"] = jpeg(20 * label + 5 * index)
    return files


def write_mirror(folder: Path, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = archive(folder / "cifar10_jpeg" / "cifar10_jpeg.tar.xz", files)
    monkeypatch.setattr(cifar10, "JPEG_SHA256", sha256)


def test_mirror_is_decoded_once(tmp_path: Path, mirror: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    write_mirror(tmp_path, mirror, monkeypatch)
    images = read_cifar10_jpeg(tmp_path, tmp_path / "cache")
    assert images.train.shape == (20, 3, 32, 32) and images.test.shape == (10, 3, 32, 32)
    assert images.train_labels.tolist() == [*range(10), *range(10)]  # interleaved
    shades = images.train.float().mean((1, 2, 3)).round()
    assert (shades - torch.tensor([20 * k + 5 * i for i in range(2) for k in range(10)])).abs().max() <= 2
    (tmp_path / "cifar10_jpeg" / "cifar10_jpeg.tar.xz").unlink()
    assert torch.equal(read_cifar10_jpeg(tmp_path, tmp_path / "cache").train, images.train)


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("train/cat/0001.jpg", b"no image", ["train/cat/0001.jpg", "decodes"]),
        ("train/cat/0001.jpg", jpeg(0)[:300], ["train/cat/0001.jpg", "decodes"]),
        ("test/ship/0000.jpg", jpeg(0, size=16), ["test/ship/0000.jpg", "16x16", "32x32"]),
        ("test/ship/0009.jpg", jpeg(0), ["11 test images", "expected 10"]),
        ("test/boat/0000.jpg", jpeg(0), ["test/boat/0000.jpg", "'boat'"]),
    ],
)
def test_wrong_image_is_refused(
    tmp_path: Path,
    mirror: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    member: str,
    content: bytes,
    words: list[str],
) -> None:
    write_mirror(tmp_path, {**mirror, member: content}, monkeypatch)
    with refused(*words):
        read_cifar10_jpeg(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_mirror_is_refused(
    tmp_path: Path, mirror: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, refused: Refused, damage: str
) -> None:
    write_mirror(tmp_path, mirror, monkeypatch)
    path = tmp_path / "cifar10_jpeg" / "cifar10_jpeg.tar.xz"
    if damage == "missing":
        path.unlink()
        words = [path, "EXPRUNE_DATA_DIR"]
    else:
        path.write_bytes(path.read_bytes()[:-100])
        words = [path, hashlib.sha256(path.read_bytes()).hexdigest(), cifar10.JPEG_SHA256]
    with refused(*words):
        read_cifar10_jpeg(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in the official layout with 20 training and 10 test images and the expected checksums."""
    generator = np.random.default_rng(0)

    def batch(count: int) -> bytes:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, "labels": [k % 10 for k in range(count)]})

    files = {"data_batch_1": batch(10), "data_batch_2": batch(10), "test_batch": batch(10)}
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    path = tmp_path / "data" / "cifar10" / CIFAR10.filename
    sha256 = archive(path, {f"{CIFAR10.base_folder}/{name}": content for name, content in files.items()})
    monkeypatch.setattr(cifar10, "OFFICIAL_SHA256", sha256)
    return path


def test_official_archive_is_unpacked_once(tmp_path: Path, official: Path) -> None:
    images = read_cifar10(tmp_path / "data", tmp_path / "cache")
    assert images.train.shape == (20, 3, 32, 32) and images.train_labels.tolist() == [*range(10), *range(10)]
    with tarfile.open(official) as tar:
        first = pickle.load(tar.extractfile(f"{CIFAR10.base_folder}/data_batch_1"))
    assert np.array_equal(images.train[:10].flatten(1).numpy(), first["data"])
    official.unlink()
    again = read_cifar10(tmp_path / "data", tmp_path / "cache")
    assert torch.equal(again.test, images.test) and torch.equal(again.test_labels, images.test_labels)


def test_half_an_official_archive_is_refused(tmp_path: Path, official: Path, refused: Refused) -> None:
    official.write_bytes(official.read_bytes()[:1000])
    with refused(official, hashlib.sha256(official.read_bytes()).hexdigest(), cifar10.OFFICIAL_SHA256):
        read_cifar10(tmp_path / "data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("served", ["nothing", "half", "all"])
def test_official_archive_is_downloaded_whole_or_not_at_all(
    tmp_path: Path, official: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, served: str
) -> None:
    """A partial download and a missing network both say where to put the archive; the next try starts afresh."""
    source, data_dir, cache = official.rename(tmp_path / "served.tar.gz"), tmp_path / "data", tmp_path / "cache"

    class Answer(io.BytesIO):
        def info(self) -> "Answer":
            return self

        def get_all(self, name: str) -> None:
            return None

    def open_url(request: object) -> Answer:
        if served == "nothing":
            raise urllib.error.URLError("no route to host")
        content = source.read_bytes()
        return Answer(content if served == "all" else content[:1000])

    monkeypatch.setattr("torch.hub.urlopen", open_url)
    if served == "all":
        assert read_cifar10(data_dir, cache).train.shape == (20, 3, 32, 32)
        return
    why = "no route to host" if served == "nothing" else cifar10.OFFICIAL_SHA256
    with refused(CIFAR10.url, why, official):
        read_cifar10(data_dir, cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]
