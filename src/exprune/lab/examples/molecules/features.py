"""Convert a SMILES string to a graph with the features of the Open Graph Benchmark (docs/method.md, section 6)."""

import torch
from rdkit import Chem
from rdkit.Chem.rdchem import BondStereo, BondType, ChiralType, HybridizationType
from torch import Tensor

from exprune.core.errors import SettingError

# Each list is a vocabulary. Values that are not in it get the index after its last one.
_CHIRALITY = [ChiralType.names[f"CHI_{name}"] for name in ("UNSPECIFIED", "TETRAHEDRAL_CW", "TETRAHEDRAL_CCW", "OTHER")]
_HYBRIDIZATION = [HybridizationType.names[name] for name in ("SP", "SP2", "SP3", "SP3D", "SP3D2")]
_BOND_TYPES = [BondType.SINGLE, BondType.DOUBLE, BondType.TRIPLE, BondType.AROMATIC]
# This list has no index for other values: these six kinds are all that RDKit knew when OGB was made. Newer kinds
# (atropisomers) count as NONE.
_STEREO = [BondStereo.names[f"STEREO{name}"] for name in ("NONE", "Z", "E", "CIS", "TRANS", "ANY")]

ATOM_VOCABULARY = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_VOCABULARY = (5, 6, 2)


def parse(smiles: str, where: str) -> tuple[Chem.Mol, bool]:
    """The molecule, even if RDKit's valence rules reject it (as for seven molecules of HIV), and whether they accept
    it.

    Raises:
        SettingError: If the string is not SMILES. The message begins with ``where``.
    """
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is not None:
        return molecule, True
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None or not molecule.GetNumAtoms():
        raise SettingError(f"{where}: {smiles!r} is not a SMILES string with at least one atom")
    molecule.UpdatePropertyCache(strict=False)
    try:
        Chem.SanitizeMol(molecule, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES)
    except Chem.MolSanitizeException as error:
        raise SettingError(f"{where}: {smiles!r} is not a valid molecule ({str(error).strip()})") from error
    return molecule, False


def featurise(molecule: Chem.Mol) -> tuple[Tensor, Tensor, Tensor]:
    """Atom features (nodes, 9), edges (2, edges) and bond features (edges, 3); each bond in both directions."""
    atoms = [_atom_features(atom) for atom in molecule.GetAtoms()]
    sources: list[int] = []
    targets: list[int] = []
    bonds: list[list[int]] = []
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        features = _bond_features(bond)
        sources += (i, j)
        targets += (j, i)
        bonds += (features, features)
    return (
        torch.tensor(atoms, dtype=torch.uint8).view(-1, len(ATOM_VOCABULARY)),
        torch.tensor([sources, targets], dtype=torch.int32).view(2, -1),
        torch.tensor(bonds, dtype=torch.uint8).view(-1, len(BOND_VOCABULARY)),
    )


def _position(vocabulary: list, value: object) -> int:
    return vocabulary.index(value) if value in vocabulary else len(vocabulary)


def _number(value: int, low: int, high: int) -> int:
    return value - low if low <= value <= high else high - low + 1


def _atom_features(atom: Chem.Atom) -> list[int]:
    return [
        _number(atom.GetAtomicNum(), 1, 118),
        _position(_CHIRALITY, atom.GetChiralTag()),
        _number(atom.GetTotalDegree(), 0, 10),
        _number(atom.GetFormalCharge(), -5, 5),
        _number(atom.GetTotalNumHs(), 0, 8),
        _number(atom.GetNumRadicalElectrons(), 0, 4),
        _position(_HYBRIDIZATION, atom.GetHybridization()),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    ]


def _bond_features(bond: Chem.Bond) -> list[int]:
    return [
        _position(_BOND_TYPES, bond.GetBondType()),
        _position(_STEREO, bond.GetStereo()) % len(_STEREO),
        int(bond.GetIsConjugated()),
    ]
