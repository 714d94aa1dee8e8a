"""Files are written completely or not at all, and tensors are read without executing code."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune.core.errors import SettingError
from exprune.files import load_tensors, save_tensors, write_whole

from .conftest import Refused


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_write_whole_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        write_whole(path, lambda partial, text=text: partial.write_text(text))
        assert path.read_text() == text
    assert names(tmp_path) == ["a", "b", "file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_exception_leaves_the_old(error: type[BaseException], before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write_whole(path, write)
    assert names(tmp_path) == ([] if before is None else ["file.txt"])
    assert before is None or path.read_text() == before


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half")
        assert path.read_text() == "old"
        partial.write_text("whole")

    with path.open() as reader:
        write_whole(path, write)
        assert reader.read() == "old"  # the file was replaced, not rewritten
    assert path.read_text() == "whole"


def test_an_os_error_is_a_setting(tmp_path: Path, refused: Refused) -> None:
    def write(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with refused(tmp_path / "file.txt", "No space left on device"):
        write_whole(tmp_path / "file.txt", write)
    assert names(tmp_path) == []


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_whole(path, lambda partial: partial.write_text("text")),
    "tensors": lambda path: save_tensors(path, {"a": torch.zeros(3)}, {}),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("below", ["file/out", "file/deep/out", "folder"])
def test_unwritable_place(writer: str, below: str, tmp_path: Path, refused: Refused) -> None:
    """Paths below a regular file, or where a folder exists; permission bits would not stop root."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with refused(tmp_path / below, "cannot be written"):
        WRITERS[writer](tmp_path / below)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Files cannot grow beyond 64 KiB, which acts like a full disk without filling one."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files_only")
def test_tensors_that_do_not_fit(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "out", "cannot be written"):
        save_tensors(tmp_path / "out", {"a": torch.zeros(2**16)}, {})
    assert names(tmp_path) == []


dtypes = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8])
shapes = st.lists(st.integers(0, 4), max_size=3)
forms = st.dictionaries(st.text("abc.", min_size=1), st.tuples(dtypes, shapes), max_size=4)


@settings(max_examples=30, deadline=None)
@given(forms, st.text(max_size=20))
def test_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory, form: dict[str, tuple[torch.dtype, list[int]]], note: str
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    tensors = {name: torch.randint(0, 99, shape).to(dtype) for name, (dtype, shape) in form.items()}
    save_tensors(path, tensors, {"note": note})
    loaded, metadata = load_tensors(path)
    assert metadata == {"note": note}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6.0).view(2, 3).T, torch.arange(6.0)[::2], torch.nn.Parameter(torch.ones(2, 2))],
    ids=["transposed", "strided", "parameter"],
)
def test_views_and_parameters_can_be_saved(tensor: Tensor, tmp_path: Path) -> None:
    save_tensors(tmp_path / "out", {"a": tensor}, {})
    loaded, metadata = load_tensors(tmp_path / "out")
    assert torch.equal(loaded["a"], tensor.detach()) and not loaded["a"].requires_grad
    assert metadata == {}


class Trap:
    """Fails the test when a pickle of it is executed."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("code from a file was executed",)


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(99), pickle.dumps(Trap())], ids=["empty", "text", "zeros", "pickle"]
)
def test_another_format_is_refused(content: bytes, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with refused(path, "not a whole safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("kind", ["nothing", "folder", "below a file"])
def test_no_file_is_refused(kind: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "below a file":
        path.write_text("x")
        path = path / "weights.safetensors"
    with refused(path, "is a folder, not a file of weights" if path.is_dir() else "no such file"):
        load_tensors(path)


def test_large_files_are_written_in_parts(tmp_path: Path) -> None:
    tensors = {name: torch.randn(size) for name, size in (("a", 10), ("b", 60), ("c", 300), ("d", 5))}
    first = save_tensors(tmp_path / "big.safetensors", tensors, {"note": "n"}, most=400)
    assert first.name == "big-1of3.safetensors" and len(list(tmp_path.iterdir())) == 3
    read, metadata = load_tensors(first)
    assert metadata == {"note": "n"} and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    (tmp_path / "big-2of3.safetensors").unlink()
    with pytest.raises(SettingError, match=r"big-2of3\.safetensors: no such file"):
        load_tensors(first)
