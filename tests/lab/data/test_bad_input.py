"""Missing, broken or unreachable files give one line with the cause and the remedy, and leave nothing behind."""

import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from exprune.lab.examples.molecules import smiles as smiles_module
from exprune.lab.examples.molecules.graphs import cached
from exprune.lab.examples.molecules.smiles import HIV_URL, Molecules, read_hiv

from .conftest import Refused

HEADER = "smiles,activity,HIV_active\n"
FEW = Molecules("few", ["CC", "CO", "c1ccccc1"], [0, 1, 0])


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], object]) -> list[str]:
    """Let ``answer`` answer every request; return the list of requested addresses."""
    asked: list[str] = []

    def urlopen(url: str, *args: object, **kwargs: object) -> object:
        asked.append(url)
        return answer()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def unreachable() -> object:
    raise urllib.error.URLError("no route to host")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests of this file off the network."""
    serve(monkeypatch, unreachable)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (HEADER + "CC,CI,0\nCC,CI,2\n", ["row 2", "0 or 1"]),
        (HEADER + "CC,CI,0\nCC,CI,0.5\n", ["row 2", "0 or 1"]),
        (HEADER + "CC,CI,0\nCC,CI,\n", ["row 2", "0 or 1"]),
        (HEADER + "CC,CI,0\nCC,CI,yes\nCC,CI,1\n", ["row 2", "yes"]),
        (HEADER + "CC,CI,0\n,CI,1\n", ["row 2", "smiles"]),
        ("smiles,activity\nCC,CI\n", ["HIV_active", "activity"]),
        ("SMILES,activity,HIV_active\nCC,CI,0\n", ["smiles", "SMILES"]),
        (HEADER + "CC,CI,0\nCO,CI,1,1,1\n", ["line 3"]),
        ("", ["not a readable CSV"]),
        ("\n\n", ["not a readable CSV"]),
        (HEADER, ["no rows"]),
        (b"\xff\xfe\x00\x01", ["not a readable CSV"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["not a readable CSV"]),
    ],
    ids=[
        "label 2",
        "label 0.5",
        "no label",
        "label yes",
        "no smiles",
        "no label column",
        "no smiles column",
        "too many fields",
        "empty",
        "blank lines",
        "header alone",
        "binary",
        "image",
    ],
)
def test_broken_csv(
    content: str | bytes, parts: list[str], write_csv: Callable, tmp_path: Path, refused: Refused
) -> None:
    folder = write_csv(content)
    with refused(folder / "hiv" / "HIV.csv", *parts):
        read_hiv(folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("smiles", "row"),
    [(["CC", "C(", "CC"], 2), (["CC", "CC", "c1cccc1"], 3), (["12", "13"], 1)],
    ids=["syntax", "aromaticity", "numbers alone"],
)
def test_no_smiles_names_its_row(
    smiles: list[str], row: int, write_csv: Callable, tmp_path: Path, refused: Refused
) -> None:
    folder = write_csv(HEADER + "".join(f"{text},CI,0\n" for text in smiles))
    with refused(folder / "hiv" / "HIV.csv", f"row {row}", repr(smiles[row - 1])):
        cached(read_hiv(folder, tmp_path / "cache"), "few", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_trailing_comma_shifts_no_column(write_csv: Callable, tmp_path: Path) -> None:
    molecules = read_hiv(write_csv(HEADER + "CC,CI,0,\nCO,CM,1,\n"), tmp_path)
    assert (molecules.smiles, molecules.labels) == (["CC", "CO"], [0, 1])


@pytest.mark.parametrize("labels", [("0", "1"), ("0.0", "1.0"), ("False", "True")])
def test_labels_in_other_spellings(labels: tuple[str, str], write_csv: Callable, tmp_path: Path) -> None:
    molecules = read_hiv(write_csv(f"{HEADER}CC,CI,{labels[0]}\nCO,CI,{labels[1]}\n"), tmp_path)
    assert molecules.labels == [0, 1]
    assert all(type(label) is int for label in molecules.labels)


def test_missing_file_without_network(tmp_path: Path, refused: Refused) -> None:
    wanted = tmp_path / "data" / "hiv" / "HIV.csv"
    with refused(wanted, HIV_URL, "no route to host", "EXPRUNE_DATA_DIR"):
        read_hiv(tmp_path / "data", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_data_folder_goes_before_the_network(write_csv: Callable, tmp_path: Path) -> None:
    assert read_hiv(write_csv(HEADER + "CC,CI,1\n"), tmp_path).labels == [1]


def test_wrong_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    serve(monkeypatch, lambda: io.BytesIO(b"<html>sign in</html>"))
    with refused(HIV_URL, "SHA-256", sha256(b"<html>sign in</html>").hexdigest()):
        read_hiv(tmp_path / "data", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [TimeoutError("timed out"), http.client.IncompleteRead(b"smi", 99)], ids=["timeout", "cut short"]
)
def test_download_that_breaks_off(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    class Broken(io.BytesIO):
        def read(self, *args: object) -> bytes:
            raise error

    serve(monkeypatch, Broken)
    with refused(tmp_path / "data" / "hiv" / "HIV.csv", HIV_URL):
        read_hiv(tmp_path / "data", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serve two molecules with the checksum of HIV; return the requested addresses."""
    content = (HEADER + "CC,CI,1\nCO,CI,0\n").encode()
    monkeypatch.setattr(smiles_module, "HIV_SHA256", sha256(content).hexdigest())
    return serve(monkeypatch, lambda: io.BytesIO(content))


def test_download_is_kept(tmp_path: Path, download: list[str]) -> None:
    for _ in range(2):
        molecules = read_hiv(tmp_path / "data", tmp_path / "cache")
        assert (molecules.smiles, molecules.labels) == (["CC", "CO"], [1, 0])
    assert download == [HIV_URL]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "cache" / "hiv" / "HIV.csv"]


def test_download_into_an_unwritable_folder(tmp_path: Path, download: list[str], refused: Refused) -> None:
    (tmp_path / "file").write_text("no folder")  # permission bits would not stop root
    with refused(tmp_path / "file" / "hiv" / "HIV.csv", "cannot be written"):
        read_hiv(tmp_path / "data", tmp_path / "file")
    assert download == [HIV_URL]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_cache_in_an_unwritable_folder(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("no folder")
    with refused(tmp_path / "file", "cannot be written"):
        cached(FEW, "few", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
