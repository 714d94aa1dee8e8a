"""Make exchangeability/theorem.csv and simulation.csv: which of a trained network's parameters are exchangeable.

    python results/make/exchangeability.py                # both tables; goes on where it was interrupted
    python results/make/exchangeability.py --networks 64 --folder /tmp/few

256 small networks of a kind are trained at once, each from PyTorch's own initialisation: an MLP and a CNN on the digits
of scikit-learn, each on batches of its own, and a GCN on RDKit's molecules, all on the same batches. Each group is held
against its own permutations by two tests (exprune.lab.exchangeability). The simulation says how often they reject
groups that are exchangeable by construction, and groups that are not. Seed 0. No download; some minutes on one core.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from networks import INTO
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from tqdm import tqdm

import exprune.lab  # noqa: F401  repairs torchvision before PyG is imported

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.nn import functional as F  # isort: skip
from torch_geometric.utils import to_dense_adj, to_dense_batch  # isort: skip

from exprune.files import write_whole
from exprune.lab.examples.molecules.features import ATOM_VOCABULARY
from exprune.lab.examples.molecules.graphs import process
from exprune.lab.examples.molecules.smiles import read_nci
from exprune.lab.exchangeability.many_networks import Weights, new_networks, outputs, train
from exprune.lab.exchangeability.permutation_tests import classifier_test, kernel_test

FOLDER = INTO / "exchangeability"
NETWORKS, PERMUTATIONS, BATCH, UNITS = 256, 1999, 16, 16
STEPS = {"MLP": 1000, "CNN": 300, "GCN": 600}
TESTS = {"kernel": kernel_test, "classifier": classifier_test}
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.03, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-2),
}
PYTORCH = "as PyTorch does"
Group = tuple[str, bool, NDArray]  # its name, whether the theorem holds for it, (networks, members, features)


class Mlp(nn.Module):
    """A network for ten digits of 64 pixels, with two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, UNITS), nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 10)

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.hidden(x)).relu())


class Cnn(nn.Module):
    """A network for ten digits of 8 x 8 pixels, with two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, UNITS, 3, padding=1), nn.Conv2d(UNITS, UNITS, 3, 2, 1)
        self.head = nn.Linear(UNITS * 16, 10)

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x.view(-1, 1, 8, 8)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.hidden(x)).relu().flatten(1))


class Gcn(nn.Module):
    """Atoms' features embedded, two graph convolutions, the mean of the atoms, one logit. Its inputs number graphs.

    ``graphs`` are their atoms, (graphs, atoms, values of features), 1 where an atom has the value, their normalised
    adjacency, and 1 / atoms where there is an atom.
    """

    def __init__(self, graphs: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__()
        self.graphs = graphs
        self.atoms = nn.Embedding(sum(ATOM_VOCABULARY), UNITS)
        self.first, self.second, self.head = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 1)

    def embedded(self, index: Tensor) -> Tensor:
        return self.graphs[0][index] @ self.atoms.weight

    def forward(self, index: Tensor) -> Tensor:
        adjacency, share = self.graphs[1][index], self.graphs[2][index]
        x = (adjacency @ self.first(self.embedded(index))).relu()
        x = (adjacency @ self.second(x)).relu()
        return self.head((x * share[..., None]).sum(-2))


@dataclass(frozen=True)
class Kind:
    """A kind of network: how it is made, its loss, training inputs and targets, unseen ones, its groups.

    ``shared``: whether all networks see the same batches.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    known: tuple[Tensor, Tensor]
    unseen: tuple[Tensor, Tensor]
    groups: Callable[[nn.Module, Weights, Tensor], Iterator[Group]]
    shared: bool = False

    def accuracy(self, network: nn.Module, weights: Weights) -> float:
        """Return the metric on unseen inputs, averaged over the networks."""
        found, targets = outputs(network, weights, self.unseen[0]), self.unseen[1]
        predicted = found.argmax(-1) if found.shape[-1] > 1 else (found > 0).to(targets)
        return float((predicted == targets).double().mean())


@functools.cache
def kind_of(name: str) -> Kind:
    if name == "GCN":
        return _molecules()
    images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
    images = images.float() / 16
    make, groups = (Mlp, mlp_groups) if name == "MLP" else (Cnn, cnn_groups)
    return Kind(make, F.cross_entropy, (images[:1200], labels[:1200]), (images[1200:], labels[1200:]), groups)


def _molecules(most: int = 24, count: int = 1600) -> Kind:
    """Return the first molecules of RDKit's sample with at most the given number of atoms."""
    some = read_nci(Path(), Path())
    graphs = process(replace(some, smiles=some.smiles[:count]))
    parts = replace(graphs, division={"train": 0.75, "valid": 0.0, "seed": 0})
    data = [graph for part in ("train", "test") for graph in parts.part(part) if 0 < len(graph.x) <= most]
    known = sum(0 < len(graph.x) <= most for graph in parts.part("train"))
    offsets = torch.tensor([0, *np.cumsum(ATOM_VOCABULARY)[:-1]])
    nodes = torch.tensor([len(graph.x) for graph in data])
    owner = torch.arange(len(data)).repeat_interleave(nodes)
    values = F.one_hot(torch.cat([graph.x for graph in data]) + offsets, sum(ATOM_VOCABULARY)).sum(1).float()
    atoms, there = to_dense_batch(values, owner, max_num_nodes=most)
    before = (nodes.cumsum(0) - nodes).tolist()
    edges = torch.cat([graph.edge_index + start for graph, start in zip(data, before, strict=True)], 1)
    adjacency = to_dense_adj(edges, owner, max_num_nodes=most) + torch.diag_embed(there.float())
    scale = adjacency.sum(-1).clamp(min=1).rsqrt()
    adjacency = adjacency * scale[:, :, None] * scale[:, None]
    share = there.float() / nodes[:, None]
    labels, numbers = torch.cat([graph.y.view(1) for graph in data]).long(), torch.arange(len(data))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0], targets.float())

    halves = ((numbers[:known], labels[:known]), (numbers[known:], labels[known:, None]))
    return Kind(lambda: Gcn((atoms, adjacency, share)), loss, *halves, gcn_groups, shared=True)


def _joined(*parts: Tensor) -> NDArray:
    """Concatenate features of a group's members, each of shape (networks, members, ...)."""
    return torch.cat([part.flatten(2) for part in parts], 2).numpy()


def mlp_groups(network: nn.Module, of: Weights, inputs: Tensor) -> Iterator[Group]:
    first, second, head = of["first.weight"], of["second.weight"], of["head.weight"]
    incoming = first, of["first.bias"][..., None]
    yield "hidden units 1: incoming weights, bias", True, _joined(*incoming)
    yield "hidden units 1: outgoing weights", True, _joined(second.mT)
    yield "hidden units 1: all of these", True, _joined(*incoming, second.mT)
    yield "hidden units 2: all weights, bias", True, _joined(second, of["second.bias"][..., None], head.mT)
    for number in (0, 1):
        terms = _terms(network, of, inputs[number])
        yield f"terms of one neuron, unseen input {number}", True, terms
    yield "the same terms, sorted by size", False, np.take_along_axis(terms, np.argsort(-np.abs(terms), 1), 1)
    yield "pixels: weights", False, _joined(first.mT)
    yield "digits: weights, bias", False, _joined(head, of["head.bias"][..., None])


def cnn_groups(network: nn.Module, of: Weights, inputs: Tensor) -> Iterator[Group]:
    first, second, head = of["first.weight"], of["second.weight"], of["head.weight"].unflatten(2, (UNITS, 16))
    yield "channels 1: all weights, bias", True, _joined(first, of["first.bias"][..., None], second.transpose(1, 2))
    yield "channels 2: all weights, bias", True, _joined(second, of["second.bias"][..., None], head.transpose(1, 2))
    yield "terms of one neuron, unseen input 0", True, _terms(network, of, inputs[0])
    yield "kernel positions 1", False, _joined(first.flatten(3).permute(0, 3, 1, 2))
    yield "kernel positions 2", False, _joined(second.flatten(3).permute(0, 3, 1, 2))


def gcn_groups(network: nn.Module, of: Weights, inputs: Tensor) -> Iterator[Group]:
    atoms, first, second = of["atoms.weight"], of["first.weight"], of["second.weight"]
    yield "embedded features: embeddings, outgoing weights", True, _joined(atoms.mT, first.mT)
    yield "hidden units 1: all weights, bias", True, _joined(first, of["first.bias"][..., None], second.mT)
    yield "terms of one neuron, unseen input 0", True, _terms(network, of, inputs[:1])
    yield "elements (C, N, O, F, P, S, Cl, Br): embeddings", False, atoms[:, [5, 6, 7, 8, 14, 15, 16, 34]].numpy()


def _terms(network: nn.Module, of: Weights, one: Tensor) -> NDArray:
    """Return the terms of one neuron of every network for the same input: (networks, terms)."""
    if isinstance(network, Gcn):  # of the first layer, at the first atom
        before = _call(network, of, "embedded", one)[:, 0, 0]
        return (before * of["first.weight"][:, 0]).numpy()
    before = _call(network, of, "hidden", one[None])[:, 0]
    if isinstance(network, Cnn):  # at the middle
        return (before[:, :, 3:6, 3:6] * of["second.weight"][:, 0]).flatten(2).sum(2).numpy()
    return (before * of["second.weight"][:, 0]).numpy()


def _call(network: nn.Module, of: Weights, method: str, inputs: Tensor) -> Tensor:
    """A method of every network for the same inputs."""

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self.network, method)(x)

    return outputs(Calls(), {f"network.{name}": weight for name, weight in of.items()}, inputs)


def trained(kind: Kind, optimizer: str, start: str, networks: int, steps: int) -> tuple[nn.Module, Weights]:
    """The networks, from one of the starts below."""
    network = kind.make()
    weights, rates = new_networks(kind.make, networks), None
    generator = torch.Generator().manual_seed(1)

    def batches(steps: int, networks: int) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = kind.known
        for _ in tqdm(range(steps), desc=f"{type(network).__name__}, {optimizer}, {start}", disable=None, leave=False):
            shape = (BATCH,) if kind.shared else (networks, BATCH)
            chosen = torch.randint(len(inputs), shape, generator=generator)
            yield inputs[chosen], targets[chosen]

    by_unit = torch.linspace(0.5, 1.5, UNITS).view(-1, *[1] * (weights["first.weight"].dim() - 2))
    if start == "not trained":
        return network, weights
    made = OPTIMIZERS[optimizer]
    if start == "scale by unit":
        weights["first.weight"] = weights["first.weight"] * by_unit
    elif start == "learning rate by unit":
        rates = {"first.weight": by_unit}
    elif start == "from one checkpoint":
        one = train(network, {name: weight[:1] for name, weight in weights.items()}, kind.loss, batches(steps, 1), made)
        weights = {name: weight.expand(networks, *weight.shape[1:]) for name, weight in one.items()}
    return network, train(network, weights, kind.loss, batches(steps, networks), made, rates, kind.shared)


# What is trained; of a start other than PyTorch's, the groups that it takes exchangeability from, or, of networks that
# are not trained, those that training takes it from.
RUNS: list[tuple[str, str, str, tuple[str, ...] | None]] = [
    *((kind, optimizer, PYTORCH, None) for kind in ("MLP", "CNN", "GCN") for optimizer in OPTIMIZERS),
    ("MLP", "none", "not trained", ("pixels",)),
    ("CNN", "none", "not trained", ("kernel",)),
    ("MLP", "SGD", "scale by unit", ("hidden units 1: incoming", "terms")),
    ("MLP", "SGD", "learning rate by unit", ("hidden units 1: incoming", "terms")),
    ("MLP", "Adam", "from one checkpoint", ("hidden units 1: incoming", "terms")),
    ("CNN", "SGD", "scale by unit", ("channels 1",)),
    ("GCN", "Adam", "scale by unit", ("hidden units 1",)),
]


def theorem(table: Path, networks: int) -> None:
    """Add the missing rows, one run at a time."""
    for name, optimizer, start, only in RUNS:
        rows = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["network", "optimizer", "start"])
        if ((rows.network == name) & (rows.optimizer == optimizer) & (rows.start == start)).any():
            continue
        kind = kind_of(name)
        network, weights = trained(kind, optimizer, start, networks, STEPS[name])
        accuracy, new = kind.accuracy(network, weights), []
        for group, holds, members in kind.groups(network, weights, kind.unseen[0]):
            if only is not None and not group.startswith(only):
                continue
            expected = start == "not trained" or (holds and start == PYTORCH)
            about = {"network": name, "optimizer": optimizer, "start": start, "accuracy": round(accuracy, 4)}
            about |= {"group": group, "theorem": expected, "members": members.shape[1]}
            for test, of in TESTS.items():
                found = of(members, PERMUTATIONS)
                new.append({**about, "networks": networks, "test": test, "statistic": found.statistic, "p": found.p})
        both = pd.concat([rows, pd.DataFrame(new)], ignore_index=True) if len(rows) else pd.DataFrame(new)
        write_whole(table, lambda partial, both=both: both.to_csv(partial, index=False, float_format="%.5g"))
        print(pd.DataFrame(new)[["group", "theorem", "test", "statistic", "p"]].to_string(index=False), flush=True)


def designs(rng: np.random.Generator, networks: int, members: int = 8) -> Iterator[Group]:
    """Groups that are exchangeable by construction, and groups that are not."""
    normal = rng.normal(size=(networks, members, 4))
    yield "independent, alike", True, normal
    yield "one size a network, shared by its members", True, normal * rng.gamma(2, size=(networks, 1, 1))
    draws = np.argsort(rng.random((networks, members)), 1)
    yield "drawn from few without replacement", True, np.arange(members)[draws][..., None].astype(float) ** 2
    yield "one member's mean moved by half a deviation", False, normal + 0.5 * (np.arange(members) == 3)[:, None]
    yield "size by position, 0.8 to 1.2", False, normal * np.linspace(0.8, 1.2, members)[:, None]
    walk = rng.normal(size=(networks, members + 1, 4))
    yield "alike, each correlated by 0.4 with the next", False, walk[:, 1:] + 0.5 * walk[:, :-1]


def simulation(table: Path, networks: tuple[int, ...] = (32, 128), draws: int = 200, alpha: float = 0.05) -> None:
    """Return how often each test rejects at the level, with the exact 95 % interval."""
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    there = {(row["networks"], row["design"]) for row in rows}
    for count in networks:
        names = [(name, holds) for name, holds, _ in designs(np.random.default_rng(0), 4)]
        for number, (name, holds) in enumerate(tqdm(names, desc=f"{count} networks", disable=None)):
            if (count, name) in there:
                continue
            rejected = dict.fromkeys(TESTS, 0)
            for draw in range(draws):
                group = list(designs(np.random.default_rng([draw, count]), count))[number][2]
                for test, of in TESTS.items():
                    rejected[test] += of(group, 199, alpha, seed=draw).p <= alpha
            for test, times in rejected.items():
                interval = binomtest(times, draws).proportion_ci()
                row: dict[str, Any] = {"networks": count, "design": name, "exchangeable": holds, "test": test}
                row |= {"alpha": alpha, "draws": draws, "rejected": times / draws}
                rows.append(row | {"low": round(interval.low, 4), "high": round(interval.high, 4)})
            found = pd.DataFrame(rows)
            write_whole(table, lambda partial, found=found: found.to_csv(partial, index=False))
    print(pd.DataFrame(rows).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    theorem(options.folder / "theorem.csv", options.networks)
    simulation(options.folder / "simulation.csv")


if __name__ == "__main__":
    main()
