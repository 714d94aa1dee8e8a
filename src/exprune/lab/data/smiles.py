"""Where the molecules come from: SMILES strings with binary labels."""

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rdkit import RDConfig
from rdkit.Chem import MolFromSmiles
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams
from rdkit.rdBase import BlockLogs
from tqdm import tqdm

from exprune.core.errors import SettingError

HIV_URL = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/HIV.csv"
HIV_SHA256 = "b72f0cf00cd1f45ae5c415f21aef10e69187e30dd24029ddb345fbca35b0d798"


@dataclass(frozen=True)
class Molecules:
    """SMILES strings and their labels, 0 or 1, with the name by which an error points at the source."""

    source: str
    smiles: list[str]
    labels: list[int]

    def digest(self) -> str:
        """The SHA-256 of all strings and labels."""
        rows = "\n".join(f"{smiles}\t{label}" for smiles, label in zip(self.smiles, self.labels, strict=True))
        return hashlib.sha256(rows.encode()).hexdigest()


def read_hiv(data_dir: Path, cache_dir: Path) -> Molecules:
    """MoleculeNet's HIV set, 41,127 molecules in the order of ogbg-molhiv (docs/method.md, section 6).

    Read from ``data_dir/hiv/HIV.csv``, else from an earlier download in ``cache_dir``, else downloaded.

    Raises:
        SettingError: the file is missing and cannot be downloaded, or is not such a CSV.
    """
    path = data_dir / "hiv" / "HIV.csv"
    if not path.exists():
        path = cache_dir / "hiv" / "HIV.csv"
    if not path.exists():
        _download(path, wanted=data_dir / "hiv" / "HIV.csv")
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise SettingError(f"{path}: not a readable CSV file ({error})".replace("\n", " ")) from error
    missing = {"smiles", "HIV_active"} - set(table.columns)
    if missing or table.empty:
        raise SettingError(f"{path}: no column {sorted(missing)}; it has {list(table.columns)}")
    bad = table.index[table["smiles"].isna() | ~table["HIV_active"].isin([0, 1])]
    if len(bad):
        row = table.loc[bad[0]].to_dict()
        raise SettingError(f"{path}, row {bad[0] + 1}: {row}; each row needs smiles and HIV_active 0 or 1")
    return Molecules(str(path), table["smiles"].tolist(), table["HIV_active"].astype(int).tolist())


def _download(path: Path, wanted: Path) -> None:
    try:
        with urllib.request.urlopen(HIV_URL, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise SettingError(
            f"{wanted} is missing and {HIV_URL} cannot be reached ({error}): put the file there, "
            "or point EXPRUNE_DATA_DIR at a folder that holds hiv/HIV.csv"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != HIV_SHA256:
        raise SettingError(f"{HIV_URL}: SHA-256 {found}, expected {HIV_SHA256}; nothing was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_bytes(content)
    partial.replace(path)


def read_nci(data_dir: Path, cache_dir: Path) -> Molecules:
    """The 4,991 molecules of RDKit's NCI sample that parse; the label is an alert of its NIH filter.

    They come with RDKit, so both folders go unused. About 26 % raise an alert: a structural label that a
    graph network learns in a minute, for a first result without any download.
    """
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    lines = [line.split() for line in path.read_text().splitlines()]
    alerts = FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.NIH))
    smiles, labels = [], []
    with BlockLogs():
        for text in tqdm([line[0] for line in lines if line], "labelling molecules", disable=None, leave=False):
            molecule = MolFromSmiles(text)
            if molecule is not None:
                smiles.append(text)
                labels.append(int(alerts.HasMatch(molecule)))
    return Molecules("RDKit's NCI/first_5K.smi", smiles, labels)
