"""The graph convolutional network of the paper (docs/method.md, section 5)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, global_mean_pool
from torch_geometric.utils import degree

from exprune.lab.examples.molecules.features import ATOM_VOCABULARY, BOND_VOCABULARY


class CategoricalEncoder(nn.Module):
    """The sum of one learned embedding per categorical feature: (rows, features) -> (rows, hidden)."""

    def __init__(self, vocabulary: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor((0, *vocabulary[:-1])).cumsum(0), persistent=False)
        self.table = nn.EmbeddingBag(sum(vocabulary), hidden, mode="sum")
        bound = (6 / (2 * hidden)) ** 0.5
        nn.init.uniform_(self.table.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        return self.table(features + self.offsets)


class GraphConvolution(MessagePassing):
    """``relu(linear(x))``, followed by normalised messages with bond features and a root term.

    The ReLU comes *before* the propagation, so that this layer has neurons that ExPrune can stop. Degrees count the
    node itself, and the normalisation is symmetric.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(aggr="add")
        self.linear = nn.Linear(hidden, hidden, bias=False)
        self.bonds = CategoricalEncoder(BOND_VOCABULARY, hidden)
        self.root = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, degrees: Tensor) -> Tensor:
        x = F.relu(self.linear(x))
        scale = degrees.rsqrt()
        source, target = edge_index
        norm = (scale[source] * scale[target]).unsqueeze(1)
        messages = self.propagate(edge_index, x=x, bonds=self.bonds(edge_attr), norm=norm)
        return messages + (x + self.root) / degrees.unsqueeze(1)

    def message(self, x_j: Tensor, bonds: Tensor, norm: Tensor) -> Tensor:
        return norm * (x_j + bonds)


class GCN(nn.Module):
    """Atom encoder, graph convolutions with BatchNorm, mean pool, linear head: a batch of graphs -> (graphs, tasks)."""

    def __init__(self, hidden: int = 300, layers: int = 5, tasks: int = 1, dropout: float = 0.5) -> None:
        super().__init__()
        self.hidden, self.tasks, self.dropout = hidden, tasks, dropout
        self.atoms = CategoricalEncoder(ATOM_VOCABULARY, hidden)
        self.convolutions = nn.ModuleList(GraphConvolution(hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, tasks, bias=False)

    def forward(self, batch: Data) -> Tensor:
        x = self.atoms(batch.x)
        degrees = degree(batch.edge_index[0], x.size(0), dtype=x.dtype) + 1
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True), start=1):
            x = norm(convolution(x, batch.edge_index, batch.edge_attr, degrees))
            if layer < len(self.convolutions):
                x = F.relu(x)
            x = F.dropout(x, self.dropout, self.training)
        return self.head(global_mean_pool(x, batch.batch, size=batch.num_graphs))

    def elementwise_flops(self, batch: Data) -> int:
        """FLOPs of the batch that the paper's accounting counts besides the matrix products."""
        layers, hidden = len(self.convolutions), self.hidden
        per_node = len(ATOM_VOCABULARY) * hidden + 2 * hidden * layers + hidden * (layers - 1) + hidden
        per_edge = layers * (len(BOND_VOCABULARY) * hidden + 2 * len(BOND_VOCABULARY) * hidden)
        return batch.num_nodes * per_node + batch.num_edges * per_edge
