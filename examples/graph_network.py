"""A graph network of PyTorch Geometric, without any change."""

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GIN

import exprune

torch.manual_seed(0)
model = GIN(in_channels=16, hidden_channels=64, num_layers=3, out_channels=4).eval()
graphs = [Data(x=torch.randn(60, 16), edge_index=torch.randint(0, 60, (2, 200))) for _ in range(12)]

calibration = exprune.calibrate(model, graphs)
curve = exprune.tradeoff(model, calibration, graphs)
print(curve)
print("changes are measured by", calibration.measure)
