"""The data set that comes with RDKit: its molecules, split, cache and batches."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rdkit.Chem import Mol, MolFromSmiles
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from torch.utils.flop_counter import FlopCounterMode

from exprune.lab.examples.molecules import graphs as graphs_module
from exprune.lab.examples.molecules.gcn import GCN
from exprune.lab.examples.molecules.graphs import Graphs, MoleculeData, cached
from exprune.lab.examples.molecules.smiles import Molecules
from tests.cli import ROOT, CommandLine

from .conftest import Refused

FEW = Molecules("few", ["CC", "CO"], [0, 1])


def module(
    molecules: Molecules, cache_dir: Path, limit: int | None = None, split: dict[str, Any] | None = None
) -> MoleculeData:
    """Return the data module that its configuration creates, for molecules that are already read."""
    return MoleculeData(
        "nci",
        lambda data_dir, cache_dir: molecules,
        "no folder",
        str(cache_dir),
        batch_size=8,
        eval_batch_size=64,
        limit=limit,
        split=split,
    )


def test_molecules(nci: Molecules, nci_graphs: Graphs) -> None:
    labels = nci_graphs.tensors["y"]
    assert len(nci.smiles) == len(labels) == 4991
    assert labels.unique().tolist() == [0, 1]
    assert round(labels.double().mean().item(), 2) == 0.26


def test_labels_are_alerts_of_the_nih_filter(nci: Molecules, nci_graphs: Graphs) -> None:
    alerts = FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.NIH))
    expected = [int(alerts.HasMatch(MolFromSmiles(smiles))) for smiles in nci.smiles[:100]]
    assert nci_graphs.tensors["y"][:100].tolist() == expected
    assert 0 < sum(expected) < 100


def test_split_parts_are_disjoint_and_complete(nci_graphs: Graphs) -> None:
    assert list(nci_graphs.split) == ["train", "valid", "test"]
    assert sorted(chain.from_iterable(nci_graphs.split.values())) == list(range(4991))
    sizes = [len(part) / 4991 for part in nci_graphs.split.values()]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.001)


def test_parts_are_alike(nci_graphs: Graphs) -> None:
    """Alike in the share of scaffolds with a single molecule; the benchmark's split would test on nothing else."""
    for part in nci_graphs.split.values():
        _, sizes = nci_graphs.tensors["scaffold"][part].unique(return_counts=True)
        assert (sizes == 1).double().mean().item() == pytest.approx(0.7, abs=0.05)


def test_no_scaffold_on_two_sides(nci: Molecules, nci_graphs: Graphs) -> None:
    sides = {
        name: {MurckoScaffoldSmiles(mol=MolFromSmiles(nci.smiles[index])) for index in part}
        for name, part in nci_graphs.split.items()
    }
    assert sum(map(len, sides.values())) == len(set().union(*sides.values())) > 500


def test_graphs_keep_the_order_of_the_molecules(nci: Molecules, nci_graphs: Graphs) -> None:
    labels = nci_graphs.tensors["y"].tolist()
    indices = nci_graphs.split["valid"]
    part = nci_graphs.part("valid")
    assert [int(graph.y) for graph in part] == [labels[index] for index in indices]
    for graph, index in list(zip(part, indices, strict=True))[:50]:
        molecule = MolFromSmiles(nci.smiles[index])
        assert (graph.num_nodes, graph.num_edges) == (molecule.GetNumAtoms(), 2 * molecule.GetNumBonds())
        assert graph.x[:, 0].tolist() == [atom.GetAtomicNum() - 1 for atom in molecule.GetAtoms()]


def test_processed_once(nci: Molecules, nci_cache: Path, nci_graphs: Graphs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs_module, "process", lambda molecules: pytest.fail("processed again"))
        again = cached(nci, "nci", nci_cache, nci_graphs.division)
        benchmark = cached(nci, "nci", nci_cache)
    assert again.split == nci_graphs.split != benchmark.split
    assert [len(part) for part in benchmark.split.values()] == [3992, 499, 500]
    assert again.tensors.keys() == nci_graphs.tensors.keys()
    for name, tensor in nci_graphs.tensors.items():
        assert torch.equal(again.tensors[name], tensor) and again.tensors[name].dtype == tensor.dtype
    assert [path.suffix for path in nci_cache.rglob("*") if path.is_file()] == [".safetensors"]


@pytest.mark.parametrize(
    ("smiles", "labels"), [(["CC", "CN"], [0, 1]), (["CC", "CO"], [0, 0])], ids=["smiles", "labels"]
)
def test_other_molecules_do_not_get_this_cache(smiles: list[str], labels: list[int], tmp_path: Path) -> None:
    first = cached(FEW, "few", tmp_path)
    other = cached(Molecules("others", smiles, labels), "few", tmp_path)
    assert len(list((tmp_path / "graphs").iterdir())) == 2
    assert other.tensors["y"].tolist() == labels
    assert torch.equal(other.tensors["x"], first.tensors["x"]) == (smiles == ["CC", "CO"])


def test_labels_may_be_a_function_of_the_molecule(tmp_path: Path) -> None:
    def has_oxygen(molecule: Mol) -> int:
        return int(any(atom.GetSymbol() == "O" for atom in molecule.GetAtoms()))

    def has_nitrogen(molecule: Mol) -> int:
        return int(any(atom.GetSymbol() == "N" for atom in molecule.GetAtoms()))

    for label, expected in ((has_oxygen, [0, 1, 0]), (has_nitrogen, [0, 0, 1])):
        graphs = cached(Molecules("few", ["CC", "CO", "CN"], label), "few", tmp_path)
        assert graphs.tensors["y"].tolist() == expected


def test_batches(nci: Molecules, nci_cache: Path, nci_graphs: Graphs, nci_split: dict[str, Any]) -> None:
    data = module(nci, nci_cache, split=nci_split)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    first = nci_graphs.part("test")[:64]
    assert torch.equal(batch.y, torch.tensor([[float(graph.y)] for graph in first]))
    assert torch.equal(batch.x, torch.cat([graph.x for graph in first]))
    assert len(data.test_dataloader().dataset) == len(nci_graphs.split["test"])
    assert len(data.val_dataloader().dataset) == len(nci_graphs.split["valid"])
    assert next(iter(data.train_dataloader())).num_graphs == 8
    beginnings = {tuple(next(iter(data.train_dataloader())).x.flatten()[:99].tolist()) for _ in range(3)}
    assert len(beginnings) > 1, "training batches are not shuffled"


def test_limit_keeps_the_first_of_each_part(
    nci: Molecules, nci_cache: Path, nci_graphs: Graphs, nci_split: dict[str, Any]
) -> None:
    data = module(nci, nci_cache, limit=5, split=nci_split)
    data.setup()
    for name, loader in (("valid", data.val_dataloader()), ("test", data.test_dataloader())):
        (batch,) = loader
        assert torch.equal(batch.x, torch.cat([graph.x for graph in nci_graphs.part(name)[:5]]))
    assert len(data.train_dataloader().dataset) == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(limit: int, command: CommandLine) -> None:
    outcome = command("evaluate.py", f"data.limit={limit}")
    assert outcome.code == 1 and f"data.limit={limit}: must be a whole number, at least 1" in outcome.error_line()


@pytest.mark.parametrize(
    "split",
    [
        {"train": 0.7},
        {"train": 0.7, "valid": 0.3},
        {"train": 0.7, "valid": 0},
        {"train": "most", "valid": 0.1},
        {"train": 0.7, "valid": 0.1, "seed": 0.5},
        {"train": 0.7, "valid": 0.1, "seed": -1},
        {"train": 0.7, "valid": 0.1, "test": 0.2},
        "random",
    ],
    ids=str,
)
def test_a_split_that_cannot_be_is_refused(split: Any, tmp_path: Path, refused: Refused) -> None:
    with refused(f"data.split={split}: give train and valid"):
        MoleculeData("few", lambda *_: FEW, "no folder", str(tmp_path), 8, 64, split=split)


def test_the_benchmark_keeps_its_own_split() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = compose("train", ["data=ogbg_molhiv"]).data.module
        assert settings.split is None
        assert instantiate(settings).division == {}


def test_dense_flops_of_a_batch(nci: Molecules, nci_cache: Path) -> None:
    """Linear algebra as PyTorch counts it; the rest as listed in docs/method.md, section 5."""
    data = module(nci, nci_cache, limit=20)
    data.setup()
    (batch,) = data.test_dataloader()
    network = GCN().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch)
    nodes, edges = batch.num_nodes, batch.num_edges
    assert counter.get_total_flops() == 5 * 2 * 300 * 300 * nodes + 2 * 300 * 20
    encoders = 9 * 300 * nodes + 5 * 3 * 300 * edges
    messages = 5 * 2 * 3 * 300 * edges
    norms_relus_pool = (5 * 2 + 4 + 1) * 300 * nodes
    assert network.elementwise_flops(batch) == encoders + messages + norms_relus_pool
