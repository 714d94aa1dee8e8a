"""Molecules and graphs that several tests share; whatever takes seconds is made once per session."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from exprune.core import SettingError
from exprune.files import write_whole
from exprune.lab.examples.molecules.graphs import Graphs, cached
from exprune.lab.examples.molecules.smiles import Molecules, read_hiv, read_nci
from tests.cli import ROOT

Refused = Callable[..., AbstractContextManager]


@pytest.fixture(scope="session")
def nci() -> Molecules:
    """The molecules that come with RDKit; they need no folder."""
    return read_nci(Path("no folder"), Path("no folder"))


@pytest.fixture(scope="session")
def nci_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for this session."""
    return tmp_path_factory.mktemp("nci_cache")


@pytest.fixture(scope="session")
def nci_split() -> dict[str, Any]:
    """The split that conf/data/nci.yaml sets."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / "nci.yaml").split)


@pytest.fixture(scope="session")
def nci_graphs(nci: Molecules, nci_cache: Path, nci_split: dict[str, Any], session_cache: Path) -> Graphs:
    """The processed graphs of :func:`nci`; the commands of later tests find them in the cache."""
    graphs = cached(nci, "nci", nci_cache, nci_split)
    for file in nci_cache.rglob("*.safetensors"):
        write_whole(session_cache / file.relative_to(nci_cache), partial(shutil.copy, file))
    return graphs


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data; skips the test if there is none."""
    folder = os.environ.get("EXPRUNE_DATA_DIR")
    if folder is None or not (Path(folder) / "hiv" / "HIV.csv").is_file():
        pytest.skip("needs MoleculeNet's HIV.csv: set EXPRUNE_DATA_DIR to a folder that holds hiv/HIV.csv")
    return Path(folder)


@pytest.fixture(scope="session")
def hiv(data_dir: Path) -> Molecules:
    """The molecules of ogbg-molhiv."""
    return read_hiv(data_dir, Path("no folder"))


@pytest.fixture(scope="session")
def hiv_graphs(hiv: Molecules, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The graphs of :func:`hiv`, which take half a minute or more."""
    return cached(hiv, "ogbg_molhiv", tmp_path_factory.mktemp("hiv_cache"))


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write hiv/HIV.csv into a new data folder and return the folder."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "data" / "hiv" / "HIV.csv"
        path.parent.mkdir(parents=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "data"

    return write


@pytest.fixture
def refused() -> Refused:
    """``with refused("a", "b"):`` expects a SettingError of one line that contains ``a`` and ``b``."""

    @contextmanager
    def expect(*parts: object) -> Iterator[None]:
        with pytest.raises(SettingError) as raised:
            yield
        message = str(raised.value)
        assert "\n" not in message
        assert [str(part) for part in parts if str(part) not in message] == [], message

    return expect
