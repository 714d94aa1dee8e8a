"""Features of single molecules, worked out by hand from OGB's vocabulary (docs/method.md, section 6).

Atoms: atomic number - 1, chirality (CW 1, CCW 2), degree with hydrogens, charge + 5, hydrogens, radical electrons,
hybridisation (SP 0, SP2 1, SP3 2, SP3D 3, SP3D2 4, else 5), aromatic, in ring. Bonds: single 0 ... aromatic 3,
else 4; stereo none 0, Z 1, E 2; conjugated.
"""

import pytest
import torch
from rdkit.rdBase import BlockLogs

from exprune.lab.examples.molecules.features import ATOM_VOCABULARY, BOND_VOCABULARY, featurise, parse
from exprune.lab.examples.molecules.graphs import Graphs, process
from exprune.lab.examples.molecules.smiles import Molecules

from .conftest import Refused

METHYL = [5, 0, 4, 5, 3, 0, 2, 0, 0]
VINYL = [5, 0, 3, 5, 1, 0, 1, 0, 0]  # a CH between a single and a double bond
VINYL_END = [5, 0, 3, 5, 2, 0, 1, 0, 0]
BENZENE = [5, 0, 3, 5, 1, 0, 1, 1, 1]
AMMINE = [6, 0, 4, 5, 3, 0, 2, 0, 0]
CHLORIDE = [16, 0, 1, 5, 0, 0, 2, 0, 0]
FLUORIDE = [8, 0, 1, 5, 0, 0, 2, 0, 0]
SINGLE = [0, 0, 0]

# SMILES -> features of the atoms, and of the bonds by the two atoms they join
CASES: dict[str, tuple[list[list[int]], dict[tuple[int, int], list[int]]]] = {
    "CCO": (
        [METHYL, [5, 0, 4, 5, 2, 0, 2, 0, 0], [7, 0, 2, 5, 1, 0, 2, 0, 0]],
        {(0, 1): SINGLE, (1, 2): SINGLE},
    ),
    "c1ccccc1": ([BENZENE] * 6, {(i, (i + 1) % 6): [3, 0, 1] for i in range(6)}),
    "C1CC1": ([[5, 0, 4, 5, 2, 0, 2, 0, 1]] * 3, {(0, 1): SINGLE, (1, 2): SINGLE, (2, 0): SINGLE}),
    "CC=CC": ([METHYL, VINYL, VINYL, METHYL], {(0, 1): SINGLE, (1, 2): [1, 0, 0], (2, 3): SINGLE}),
    "C/C=C/C": ([METHYL, VINYL, VINYL, METHYL], {(0, 1): SINGLE, (1, 2): [1, 2, 0], (2, 3): SINGLE}),
    "C/C=C\\C": ([METHYL, VINYL, VINYL, METHYL], {(0, 1): SINGLE, (1, 2): [1, 1, 0], (2, 3): SINGLE}),
    "C=CC=C": (
        [VINYL_END, VINYL, VINYL, VINYL_END],
        {(0, 1): [1, 0, 1], (1, 2): [0, 0, 1], (2, 3): [1, 0, 1]},
    ),
    "C#N": ([[5, 0, 2, 5, 1, 0, 0, 0, 0], [6, 0, 1, 5, 0, 0, 0, 0, 0]], {(0, 1): [2, 0, 0]}),
    "F[C@](Cl)(Br)I": (
        [FLUORIDE, [5, 2, 4, 5, 0, 0, 2, 0, 0], CHLORIDE, [34, *CHLORIDE[1:]], [52, *CHLORIDE[1:]]],
        {(0, 1): SINGLE, (1, 2): SINGLE, (1, 3): SINGLE, (1, 4): SINGLE},
    ),
    "F[C@@](Cl)(Br)I": (
        [FLUORIDE, [5, 1, 4, 5, 0, 0, 2, 0, 0], CHLORIDE, [34, *CHLORIDE[1:]], [52, *CHLORIDE[1:]]],
        {(0, 1): SINGLE, (1, 2): SINGLE, (1, 3): SINGLE, (1, 4): SINGLE},
    ),
    "FP(F)(F)(F)F": (
        [FLUORIDE, [14, 0, 5, 5, 0, 0, 3, 0, 0], *[FLUORIDE] * 4],
        {(0, 1): SINGLE, **{(1, i): SINGLE for i in range(2, 6)}},
    ),
    "FS(F)(F)(F)(F)F": (
        [FLUORIDE, [15, 0, 6, 5, 0, 0, 4, 0, 0], *[FLUORIDE] * 5],
        {(0, 1): SINGLE, **{(1, i): SINGLE for i in range(2, 7)}},
    ),
    # a square-planar centre and dative bonds are in no vocabulary
    "Cl[Pt@SP1](Cl)([NH3])[NH3]": (
        [CHLORIDE, [77, 4, 4, 5, 0, 0, 5, 0, 0], CHLORIDE, AMMINE, AMMINE],
        {(0, 1): SINGLE, (1, 2): SINGLE, (3, 1): [4, 0, 0], (4, 1): [4, 0, 0]},
    ),
    # isotopes: the element counts, and heavy hydrogen stays an atom
    "[2H]O": ([[0, 0, 1, 5, 0, 0, 5, 0, 0], [7, 0, 2, 5, 1, 0, 2, 0, 0]], {(0, 1): SINGLE}),
    "[13CH4]": ([[5, 0, 4, 5, 4, 0, 2, 0, 0]], {}),
    "C": ([[5, 0, 4, 5, 4, 0, 2, 0, 0]], {}),
    # charges and a radical
    "[NH4+]": ([[6, 0, 4, 6, 4, 0, 2, 0, 0]], {}),
    "[OH-]": ([[7, 0, 1, 4, 1, 0, 2, 0, 0]], {}),
    "[Na+].[Cl-]": ([[10, 0, 0, 6, 0, 0, 5, 0, 0], [16, 0, 0, 4, 0, 0, 2, 0, 0]], {}),
    "[CH3]": ([[5, 0, 3, 5, 3, 1, 2, 0, 0]], {}),
    # beyond the ends of the vocabulary: a charge of +6, an atom without a number
    "[U+6]": ([[91, 0, 0, 11, 0, 0, 5, 0, 0]], {}),
    "*": ([[118, 0, 0, 5, 0, 0, 5, 0, 0]], {}),
}

# Three of the seven molecules of HIV that RDKit's valence rules reject: row from 0, atoms, bonds.
REJECTED = {
    "O=C1O[Al]23(OC1=O)(OC(=O)C(=O)O2)OC(=O)C(=O)O3": (19, 21),
    "Cc1ccc([B-2]2(c3ccc(C)cc3)=NCCO2)cc1": (19, 21),
    "[Na+].c1ccc([SH+][GeH2+]2[SH+]c3ccccc3[SH+]2)c([SH+][GeH2+]2[SH+]c3ccccc3[SH+]2)c1": (27, 30),
}


@pytest.mark.parametrize("smiles", CASES)
def test_features_by_hand(smiles: str) -> None:
    atoms, bonds = CASES[smiles]
    with BlockLogs():
        molecule, sanitised = parse(smiles, "here")
    x, edge_index, edge_attr = featurise(molecule)
    assert sanitised
    assert x.tolist() == atoms
    assert edge_index.shape == (2, 2 * len(bonds))
    assert edge_attr.shape == (2 * len(bonds), 3)
    edges = dict(zip(map(tuple, edge_index.T.tolist()), edge_attr.tolist(), strict=True))
    assert edges == {ends: features for (i, j), features in bonds.items() for ends in [(i, j), (j, i)]}


def test_first_graph_of_ogbg_molhiv() -> None:
    """The graph that OGB shows as ``dataset[0]``: 19 nodes, 40 edges, a copper complex."""
    molecule, _ = parse("CCC1=[O+][Cu-3]2([O+]=C(CC)C1)[O+]=C(CC)CC(CC)=[O+]2", "here")
    x, edge_index, edge_attr = featurise(molecule)
    assert (x.shape, edge_index.shape, edge_attr.shape) == ((19, 9), (2, 40), (40, 3))
    assert x[:5].tolist() == [
        METHYL,
        [5, 0, 4, 5, 2, 0, 2, 0, 0],
        [5, 0, 3, 5, 0, 0, 1, 0, 1],
        [7, 0, 2, 6, 0, 0, 1, 0, 1],
        [28, 0, 4, 2, 0, 0, 5, 0, 1],
    ]


@pytest.mark.parametrize("smiles", REJECTED)
def test_molecules_that_rdkit_rejects_become_graphs(smiles: str) -> None:
    with BlockLogs():
        molecule, sanitised = parse(smiles, "here")
        x, edge_index, edge_attr = featurise(molecule)
    atoms, bonds = REJECTED[smiles]
    assert not sanitised
    assert (x.shape, edge_index.shape, edge_attr.shape) == ((atoms, 9), (2, 2 * bonds), (2 * bonds, 3))
    if "c1" in smiles:  # the lenient path finds rings and aromaticity too
        assert {tuple(row[-2:]) for row in x.tolist()} >= {(1, 1)}


@pytest.mark.parametrize("smiles", REJECTED)
def test_each_rejected_molecule_is_a_group_of_its_own(smiles: str) -> None:
    """Two molecules with one scaffold are put into different parts; a group of two would not fit into valid."""
    graphs = process(Molecules("few", [smiles] * 2 + ["c1ccccc1"] * 8, [0] * 10))
    assert graphs.split == {"train": list(range(2, 10)), "valid": [1], "test": [0]}


@pytest.mark.parametrize("smiles", ["C(", "xyz", " ", "c1cccc1", "c1cccc1O"])
def test_what_is_no_molecule_is_refused(smiles: str, refused: Refused) -> None:
    with refused("file.csv, row 3", repr(smiles)), BlockLogs():
        parse(smiles, "file.csv, row 3")


def test_features_of_nci_are_in_the_vocabulary(nci_graphs: Graphs) -> None:
    flat = nci_graphs.tensors
    for name, vocabulary in (("x", ATOM_VOCABULARY), ("edge_attr", BOND_VOCABULARY)):
        largest = flat[name].amax(dim=0).tolist()
        assert len(largest) == len(vocabulary)
        assert all(index < size for index, size in zip(largest, vocabulary, strict=True))


def test_every_bond_of_nci_stands_twice(nci_graphs: Graphs) -> None:
    flat = nci_graphs.tensors
    there, back = flat["edge_index"][:, 0::2], flat["edge_index"][:, 1::2]
    assert torch.equal(there, back.flip(0))
    assert torch.equal(flat["edge_attr"][0::2], flat["edge_attr"][1::2])
    assert bool((there[0] != there[1]).all())


def test_edges_of_nci_stay_inside_their_graph(nci_graphs: Graphs) -> None:
    flat = nci_graphs.tensors
    assert int(flat["nodes"].min()) >= 1
    assert int(flat["nodes"].sum()) == len(flat["x"])
    assert int(flat["edges"].sum()) == len(flat["edge_attr"])
    size = flat["nodes"].repeat_interleave(flat["edges"])
    assert bool((flat["edge_index"] >= 0).all()) and bool((flat["edge_index"] < size).all())
