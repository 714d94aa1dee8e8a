"""Sources of molecules: SMILES strings with binary labels."""

import functools
import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rdkit import RDConfig
from rdkit.Chem import Mol, MolFromSmiles
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams
from rdkit.rdBase import BlockLogs

from exprune.core.errors import SettingError
from exprune.files import kept, write_whole

HIV_URL = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/HIV.csv"
HIV_SHA256 = "b72f0cf00cd1f45ae5c415f21aef10e69187e30dd24029ddb345fbca35b0d798"


@dataclass(frozen=True)
class Molecules:
    """SMILES strings and their labels, 0 or 1.

    Attributes:
        source: The name of the source, for messages.
        smiles: The strings.
        labels: A list; or a function of the molecule, if labels are slow to compute, which is called during processing.
    """

    source: str
    smiles: list[str]
    labels: list[int] | Callable[[Mol], int]

    def label(self, index: int, molecule: Mol) -> int:
        return self.labels(molecule) if callable(self.labels) else self.labels[index]

    def digest(self) -> str:
        """The SHA-256 of all strings and labels."""
        labels = self.labels.__qualname__ if callable(self.labels) else "".join(map(str, self.labels))
        return hashlib.sha256("\n".join([labels, *self.smiles]).encode()).hexdigest()


def read_hiv(data_dir: Path, cache_dir: Path) -> Molecules:
    """MoleculeNet's HIV set: 41,127 molecules in the order of ogbg-molhiv (docs/method.md, section 6).

    It is read from ``data_dir/hiv/HIV.csv``, or else from an earlier download in ``cache_dir``, or else downloaded.

    Raises:
        SettingError: If the file is missing and cannot be downloaded, or is not such a CSV.
    """
    path = data_dir / "hiv" / "HIV.csv"
    if not path.exists():
        path = cache_dir / "hiv" / "HIV.csv"
        if kept(path, _checked, "it is downloaded anew") is None:
            _download(path, wanted=data_dir / "hiv" / "HIV.csv")
    try:
        # Without index_col, a comma at the end of each row would shift the columns.
        table = pd.read_csv(path, index_col=False, dtype={"smiles": str})
    except (ValueError, OSError) as error:
        raise SettingError(f"{path}: not a readable CSV file ({error})".replace("\n", " ")) from error
    missing = {"smiles", "HIV_active"} - set(table.columns)
    if missing:
        raise SettingError(f"{path}: no column {sorted(missing)}; it has {list(table.columns)}")
    if table.empty:
        raise SettingError(f"{path}: no rows below the header")
    labels = pd.to_numeric(table["HIV_active"], errors="coerce")  # one invalid label would make all of them strings
    bad = table.index[table["smiles"].isna() | ~labels.isin([0, 1])]
    if len(bad):
        row = table.loc[bad[0]].to_dict()
        raise SettingError(f"{path}, row {bad[0] + 1}: {row}; each row needs smiles and HIV_active 0 or 1")
    return Molecules(str(path), table["smiles"].tolist(), labels.astype(int).tolist())


def _checked(path: Path) -> str:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != HIV_SHA256:
        raise SettingError(f"SHA-256 {found}, expected {HIV_SHA256}")
    return found


def _download(path: Path, wanted: Path) -> None:
    try:
        with urllib.request.urlopen(HIV_URL, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise SettingError(
            f"{wanted} is missing and {HIV_URL} cannot be reached ({error}): put the file there, "
            "or point EXPRUNE_DATA_DIR at a folder that holds hiv/HIV.csv"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != HIV_SHA256:
        raise SettingError(f"{HIV_URL}: SHA-256 {found}, expected {HIV_SHA256}; nothing was kept")
    write_whole(path, lambda partial: partial.write_bytes(content))


def read_nci(data_dir: Path, cache_dir: Path) -> Molecules:
    """The 4,991 valid molecules of RDKit's NCI sample, labelled by `nih_alert`.

    They are part of RDKit, so both folders are unused. About 26 % of them raise an alert. A graph network learns this
    structural label in minutes, which gives a first result without a download.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    strings = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    with BlockLogs():
        smiles = [text for text in strings if MolFromSmiles(text) is not None]
    return Molecules("RDKit's NCI/first_5K.smi", smiles, nih_alert)


def nih_alert(molecule: Mol) -> int:
    """1 if the molecule raises an alert of RDKit's NIH structural filter, otherwise 0."""
    return int(_nih_catalog().HasMatch(molecule))


@functools.cache
def _nih_catalog() -> FilterCatalog:
    return FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.NIH))
