"""Molecules as PyG graphs: processed once, cached, and split by scaffold."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rdkit
import torch
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from rdkit.rdBase import BlockLogs
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from exprune.files import kept, load_tensors, save_tensors
from exprune.lab.data.splits import SplitData
from exprune.lab.examples.molecules.features import featurise, parse
from exprune.lab.examples.molecules.scaffold import checked_split, scaffold_split
from exprune.lab.examples.molecules.smiles import Molecules

_FORMAT = 3  # increase this when the processing changes, so that old caches are not read


@dataclass(frozen=True)
class Graphs:
    """All molecules in flat tensors, and their split.

    Attributes:
        tensors: ``x``, ``edge_index`` and ``edge_attr`` of all graphs; and for each graph its numbers of ``nodes`` and
            ``edges``, its label ``y``, and the number of its ``scaffold``, -1 if it has none.
        division: Options of `exprune.lab.examples.molecules.scaffold.scaffold_split`.
    """

    tensors: dict[str, Tensor]
    division: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def split(self) -> dict[str, list[int]]:
        """The indices of each part."""
        scaffolds = self.tensors["scaffold"].tolist()
        return scaffold_split([None if number < 0 else number for number in scaffolds], **self.division)

    def part(self, name: str, limit: int | None = None) -> list[Data]:
        """The graphs of one part in the order of the split, at most ``limit``."""
        flat = self.tensors
        nodes = flat["nodes"].tolist()
        edges = flat["edges"].tolist()
        x = flat["x"].long().split(nodes)
        edge_index = flat["edge_index"].long().split(edges, dim=1)
        edge_attr = flat["edge_attr"].long().split(edges)
        y = flat["y"].float().view(-1, 1, 1)
        chosen = self.split[name][:limit]
        return [Data(x=x[i], edge_index=edge_index[i], edge_attr=edge_attr[i], y=y[i]) for i in chosen]


def process(molecules: Molecules) -> Graphs:
    """Convert every SMILES string to a graph, and number the scaffolds.

    Raises:
        SettingError: If a string is not SMILES; the message names its row (from 1, without the header).
    """
    graphs, labels, scaffolds = [], [], []
    numbers: dict[str, int] = {}
    rows = tqdm(molecules.smiles, "building molecular graphs", disable=None, leave=False)
    with BlockLogs():
        for row, smiles in enumerate(rows, start=1):
            molecule, sanitised = parse(smiles, where=f"{molecules.source}, row {row}")
            graphs.append(featurise(molecule))
            labels.append(molecules.label(row - 1, molecule))
            scaffold = MurckoScaffoldSmiles(mol=molecule, includeChirality=False) if sanitised else None
            scaffolds.append(-1 if scaffold is None else numbers.setdefault(scaffold, len(numbers)))
    x, edge_index, edge_attr = zip(*graphs, strict=True)
    tensors = {
        "x": torch.cat(x),
        "edge_index": torch.cat(edge_index, dim=1),
        "edge_attr": torch.cat(edge_attr),
        "nodes": torch.tensor([len(nodes) for nodes in x]),
        "edges": torch.tensor([len(bonds) for bonds in edge_attr]),
        "y": torch.tensor(labels, dtype=torch.uint8),
        "scaffold": torch.tensor(scaffolds, dtype=torch.int32),
    }
    return Graphs(tensors)


def cached(molecules: Molecules, name: str, cache_dir: Path, division: Mapping[str, Any] | None = None) -> Graphs:
    """The result of `process`, cached for the same strings and the same version of RDKit."""
    path = cache_dir / "graphs" / f"{name}-{molecules.digest()[:12]}-rdkit{rdkit.__version__}-{_FORMAT}.safetensors"
    tensors = kept(path, lambda path: _read(path, len(molecules.smiles)), "it is made anew")
    if tensors is None:
        tensors = process(molecules).tensors
        save_tensors(path, tensors, {})
    return Graphs(tensors, division or {})


def _read(path: Path, count: int) -> dict[str, Tensor]:
    tensors, _ = load_tensors(path)
    nodes, edges = int(tensors["nodes"].sum()), int(tensors["edges"].sum())
    lengths = {"nodes": count, "edges": count, "y": count, "scaffold": count, "x": nodes, "edge_attr": edges}
    for name, length in lengths.items():
        if len(tensors[name]) != length:
            raise ValueError(f"{len(tensors[name])} rows of {name}, not {length}")
    if tensors["edge_index"].shape != (2, edges):
        raise ValueError(f"edge_index of shape {tuple(tensors['edge_index'].shape)}, not {(2, edges)}")
    return tensors


class MoleculeData(SplitData):
    """Molecular graphs with one binary label, in the scaffold split.

    Args:
        name: The name of the cached file.
        read: Returns the molecules, given the data and the cache folder.
        data_dir: The data folder.
        cache_dir: The cache folder.
        batch_size: The batch size of training.
        eval_batch_size: The batch size of measurements.
        num_workers: The number of worker processes that load batches.
        limit: Keep only this number of graphs of each part, for quick tries; None keeps all.
        split: Options of `exprune.lab.examples.molecules.scaffold.scaffold_split`; None means the split of the Open
            Graph Benchmark.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Path, Path], Molecules],
        data_dir: str,
        cache_dir: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 0,
        limit: int | None = None,
        split: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.file_name = name
        self.read = read
        self.data_dir = Path(data_dir).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.limit = limit
        self.division = checked_split(split)
        self.graphs: Graphs | None = None
        self.parts: dict[str, list[Data]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.graphs is None:
            molecules = self.read(self.data_dir, self.cache_dir)
            self.graphs = cached(molecules, self.file_name, self.cache_dir, self.division)

    def train_dataloader(self) -> DataLoader:
        graphs = self.examples("train")
        return self._loader(graphs, self.batch_size, shuffle=bool(graphs))  # an empty list cannot be shuffled

    def batches(self, examples: Any) -> DataLoader:
        return self._loader(examples, self.eval_batch_size)

    def examples(self, part: str) -> list[Data]:
        if part not in self.parts:
            assert self.graphs is not None  # setup() was called
            self.parts[part] = self.graphs.part(part, self.limit)
        return self.parts[part]

    def _loader(self, graphs: Any, batch_size: int, shuffle: bool = False) -> DataLoader:
        workers = self.num_workers
        return DataLoader(graphs, batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0)
