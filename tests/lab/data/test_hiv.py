"""ogbg-molhiv as published (docs/method.md, sections 4 and 6), from MoleculeNet's CSV."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from torch_geometric.loader import DataLoader

from exprune.lab.examples.molecules.gcn import GCN
from exprune.lab.examples.molecules.graphs import Graphs, process
from exprune.lab.examples.molecules.smiles import Molecules, read_hiv

SIZES = {"train": 32901, "valid": 4113, "test": 4113}
POSITIVES = {"train": 1232, "valid": 81, "test": 130}
# Rows from 0 that RDKit's valence rules reject, and their atoms.
REJECTED = {137: 19, 987: 19, 12882: 67, 18293: 31, 30784: 22, 30785: 23, 35728: 27}


def test_molecules(hiv: Molecules) -> None:
    assert len(hiv.smiles) == len(hiv.labels) == sum(SIZES.values())
    assert sum(hiv.labels) == sum(POSITIVES.values())
    assert set(hiv.labels) == {0, 1}


def test_first_rows(data_dir: Path, write_csv: Callable[[str], Path], tmp_path: Path) -> None:
    """200 rows, one of them rejected by RDKit's valence rules; this takes seconds instead of a minute."""
    lines = (data_dir / "hiv" / "HIV.csv").read_text().splitlines(keepends=True)[:201]
    molecules = read_hiv(write_csv("".join(lines)), tmp_path)
    assert molecules.smiles == [line.split(",")[0] for line in lines[1:]]
    assert molecules.labels == [int(line.rsplit(",")[-1]) for line in lines[1:]]
    graphs = process(molecules)
    assert sorted(chain.from_iterable(graphs.split.values())) == list(range(200))
    nodes, edges = graphs.tensors["nodes"].tolist(), graphs.tensors["edges"].tolist()
    assert (nodes[0], edges[0]) == (19, 40)
    assert (nodes[137], edges[137]) == (REJECTED[137], 42)
    assert min(nodes) > 1 and min(edges) > 1


@pytest.mark.slow
class TestAllGraphs:
    """Tests that need the whole processing."""

    def test_split(self, hiv: Molecules, hiv_graphs: Graphs) -> None:
        split = hiv_graphs.split
        assert {name: len(part) for name, part in split.items()} == SIZES
        assert {name: sum(hiv.labels[i] for i in part) for name, part in split.items()} == POSITIVES
        assert sorted(chain.from_iterable(split.values())) == list(range(41127))

    def test_size_of_the_graphs(self, hiv_graphs: Graphs) -> None:
        flat = hiv_graphs.tensors
        assert round(flat["nodes"].double().mean().item(), 2) == 25.51
        assert round(flat["edges"].double().mean().item(), 2) == 54.94
        assert (len(flat["x"]), len(flat["edge_attr"])) == (1049163, 2259376)

    def test_rejected_molecules_are_graphs(self, hiv_graphs: Graphs) -> None:
        nodes, edges = hiv_graphs.tensors["nodes"], hiv_graphs.tensors["edges"]
        assert {row: int(nodes[row]) for row in REJECTED} == REJECTED
        assert all(int(edges[row]) > 40 for row in REJECTED)

    def test_dense_flops(self, hiv_graphs: Graphs) -> None:
        network, total = GCN(), 0
        graphs = hiv_graphs.part("test")
        for batch in DataLoader(graphs, batch_size=512):
            linear = 5 * 2 * 300 * 300 * batch.num_nodes + 2 * 300 * batch.num_graphs
            total += linear + network.elementwise_flops(batch)
        assert isinstance(total, int)
        assert round(total / len(graphs), 6) == 23674172.428884
