"""PyG's standard networks on a small graph. The first layer reads measured features, so it is not a site."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import models

from tests.conformance.network import Network

NODES, EDGES, FEATURES, HIDDEN, OUTPUTS = 12, 40, 14, 16, 7


def on_graph(make: Callable[..., nn.Module], *args: Any, batch: bool = False, **settings: Any) -> Callable:
    """A function that builds a network and one graph, or two graphs if ``batch`` is requested."""

    def build() -> tuple[nn.Module, tuple, dict]:
        edges = torch.randint(0, NODES, (2, EDGES))
        named = {"batch": torch.arange(NODES) // (NODES // 2)} if batch else {}
        return make(*args, **settings), (torch.randn(NODES, FEATURES), edges), named

    return build


def stock(make: type[nn.Module], **settings: Any) -> Callable:
    """A network of three layers."""
    return on_graph(make, FEATURES, HIDDEN, 3, OUTPUTS, **settings)


def _mlp(**settings: Any) -> Callable:
    def build() -> tuple[nn.Module, tuple, dict]:
        return models.MLP([FEATURES, HIDDEN, HIDDEN, HIDDEN, OUTPUTS], **settings), (torch.randn(9, FEATURES),), {}

    return build


def _attentive() -> tuple[nn.Module, tuple, dict]:
    model = models.AttentiveFP(FEATURES, HIDDEN, OUTPUTS, edge_dim=5, num_layers=2, num_timesteps=2)
    edges, of_edges = torch.randint(0, NODES, (2, EDGES)), torch.randn(EDGES, 5)
    return model, (torch.randn(NODES, FEATURES), edges, of_edges, torch.arange(NODES) // (NODES // 2)), {}


_PNA = {
    "aggregators": ["mean", "max", "std"],
    "scalers": ["identity", "amplification"],
    "deg": torch.tensor([1, 2, 3, 3, 2, 1]),
}

NETWORKS: dict[str, Network] = {
    # Both hidden layers after the first.
    "MLP": Network(_mlp(), 2, fast=True),
    "MLP, no norm": Network(_mlp(norm=None), 2, fast=True),
    "MLP, ReLU before norm": Network(_mlp(act_first=True), 2, fast=True),
    "MLP, layer norm": Network(_mlp(norm="layer_norm"), 0, fast=True),
    # There is propagation between a layer and its ReLU.
    "GCN": Network(stock(models.GCN), 0, fast=True),
    "GAT": Network(stock(models.GAT), 0, fast=True),
    "GATv2": Network(stock(models.GAT, v2=True), 0, fast=True),
    # A layer for the neighbours and a layer for the node are added; one is the residual of the other.
    "GraphSAGE": Network(stock(models.GraphSAGE), 1, residual=1, fast=True),
    "GraphSAGE, batch norm": Network(stock(models.GraphSAGE, norm="batch_norm"), 1, residual=1, fast=True),
    "GraphSAGE, projected": Network(stock(models.GraphSAGE, project=True), 2 + 2, residual=2, fast=True),
    "GraphSAGE, jumping": Network(stock(models.GraphSAGE, jk="cat"), 2, residual=2, fast=True),
    "GraphSAGE, LSTM over layers": Network(stock(models.GraphSAGE, jk="lstm"), 2, residual=2, fast=True),
    # Two layers per convolution. The very first reads features, and the very last is the output.
    "GIN": Network(stock(models.GIN), 4, fast=True),
    "GIN, batch norm": Network(stock(models.GIN, norm="batch_norm"), 4, fast=True),
    # The layer after the aggregation of every convolution but the last.
    "PNA": Network(stock(models.PNA, **_PNA), 2, fast=True),
    # Also hidden layers before the aggregation (those not of features) and after it, in two towers.
    "PNA, towers": Network(
        on_graph(models.PNA, FEATURES, HIDDEN, 3, 8, towers=2, pre_layers=2, post_layers=2, **_PNA),
        2 + 2 * 2 + 3 * 2,
        fast=True,
    ),
    # The first layer of an edge; the second is aggregated before the ReLU.
    "EdgeCNN": Network(stock(models.EdgeCNN), 2, fast=True),
    "EdgeCNN, batch norm": Network(stock(models.EdgeCNN, norm="batch_norm"), 2, fast=True),
    # Four layers are added before a ReLU, and the deepest one is the site; one hidden layer.
    "LINKX": Network(on_graph(models.LINKX, NODES, FEATURES, HIDDEN, OUTPUTS, 2), 1 + 1, residual=1, fast=True),
    # Two in each local layer but the first: one with a ReLU of its own, one added to the convolution's.
    "Polynormer": Network(
        on_graph(models.Polynormer, FEATURES, HIDDEN, OUTPUTS, local_layers=3, batch=True),
        4,
        residual=2,
        fast=True,
    ),
    "SGFormer": Network(on_graph(models.SGFormer, FEATURES, HIDDEN, OUTPUTS, batch=True), 0, fast=True),
    "AttentiveFP": Network(_attentive, 0, fast=True),
    "PMLP": Network(on_graph(models.PMLP, FEATURES, HIDDEN, OUTPUTS, 3), 0, fast=True),
}
