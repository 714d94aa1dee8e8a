"""A heuristic of your own next to the paper's: stop if the extrapolated sum of the terms so far is negative."""

import torch
from torch import Tensor, nn

from exprune.core import ExPrune, Heuristic, Prefix, StatsTest, find_sites


class Extrapolate(Heuristic):
    def stop(self, seen: Prefix) -> Tensor:
        return seen.tau * seen.s * (seen.terms / seen.n) + seen.r < 0


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
batch = torch.randn(64, 20)
with torch.no_grad():
    dense = model(batch)
    for heuristic in (StatsTest(0.1), Extrapolate(0.5), Extrapolate(1.0)):
        with ExPrune(find_sites(model, batch), heuristic) as run:
            error = (model(batch) - dense).norm() / dense.norm()
        print(f"{type(heuristic).__name__}({heuristic.tau}): {run.flops.saved:.1%} saved, relative error {error:.3f}")
