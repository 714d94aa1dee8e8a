"""Make ablation_MODEL.csv: the contribution of each part of the calibrated tests, on validation images.

    python results/make/ablation.py vgg11_bn
    python results/make/ablation.py resnet18 --images 500

Each variant runs at several levels of its setting. A row has the savings at which its predictions are 0.002 and 0.01
nats (mean KL divergence, interpolated) from the dense network's. With so few images, this distinguishes variants that
accuracy does not. The released checkpoint is used; EXPRUNE_DATA_DIR names the data.
"""

import argparse
import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from composed import at_levels, divergence, subject_of
from networks import INTO, SETTINGS
from tqdm import tqdm

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.overrides import TorchFunctionMode  # isort: skip

from exprune.core import Calibrated, ExPrune, Heuristic, Optimal, Oracle, Prefix, Site, SiteStatistics, find_sites
from exprune.files import write_whole
from exprune.lab.evaluation.calibration import calibrate
from exprune.lab.evaluation.subject import Subject

STAGES = (32, 64, 128, 192, 256)
MANY = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448)
LAMS = (3e-12, 1e-11, 3e-11, 1e-10)
TAUS = (0.01, 0.03, 0.08, 0.2)
LEVELS = (0.002, 0.01)  # nats

Statistics = Mapping[str, SiteStatistics]
Variant = tuple[str, Callable[[float], Heuristic], Sequence[float]]


class Residuals(Heuristic):
    """Stop nothing; count the residuals of each line in units of its standard deviation, over a site's neurons."""

    needs_full = True
    edges = torch.linspace(-8, 8, 3201)

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.stages, self.statistics = STAGES, statistics
        self.counts: dict[tuple[str, int], Tensor] = {}

    def order(self, site: Site) -> Tensor | None:
        return self.statistics[site.name].order

    def stop(self, seen: Prefix) -> Tensor:
        of = self.statistics[seen.site.name]
        row = of.stages.index(seen.n)
        slope, offset, sd = (v[row].to(seen.s.dtype).view(-1, 1, 1) for v in (of.slope, of.offset, of.sd))
        left = ((seen.full - seen.r - slope * seen.s - offset) / sd).clamp(-8, 8)
        counts = torch.histc(left, len(self.edges) - 1, -8, 8).double()
        key = seen.site.name, seen.n
        self.counts[key] = self.counts.get(key, 0) + counts
        return torch.zeros_like(seen.s, dtype=torch.bool)

    def quantile(self, site: str, n: int, tau: float) -> float:
        """The value that a share ``tau`` of the residuals exceeds."""
        below = self.counts[site, n].cumsum(0)
        return self.edges[int(torch.searchsorted(below, (1 - tau) * below[-1]))].item()


class Empirical(Calibrated):
    """`Calibrated` with measured quantiles in place of those of the normal distribution."""

    def __init__(self, tau: float, statistics: Statistics, residuals: Residuals) -> None:
        super().__init__(tau, STAGES, statistics)
        self.residuals = residuals

    def margin(self, seen: Prefix, sd: Tensor, gradient: Tensor | None) -> Tensor:
        values = [self.residuals.quantile(seen.site.name, stage.n, seen.tau) for stage in seen.plan.stages]
        return torch.tensor(values, dtype=sd.dtype).view(-1, 1).expand_as(sd)


class ExpectedValues(TorchFunctionMode):
    """Inside an `ExPrune` of the same heuristic: stopped neurons output their expected value, not 0."""

    def __init__(self, heuristic: "Remembering", values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.heuristic, self.values = heuristic, values

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for name, stopped in self.heuristic.stopped.items():  # of the ReLU that has just been called
            out += torch.cat(stopped) * self.values[name]
        self.heuristic.stopped.clear()
        return out


class Remembering(Optimal):
    """`Optimal` that records which neurons it stopped, and their expected values."""

    needs_full = True

    def __init__(self, lam: float, statistics: Statistics) -> None:
        super().__init__(lam, STAGES, statistics)
        self.stopped: dict[str, list[Tensor]] = {}
        self.sums: dict[str, Tensor] = {}  # (2, outputs): of their ReLUs, and how many

    def stop(self, seen: Prefix) -> Tensor:
        now = super().stop(seen)
        chunks = self.stopped.setdefault(seen.site.name, [])
        if seen.stage == 0:
            chunks.append(now)
        else:
            chunks[-1] = chunks[-1] | now
        if seen.stage == len(seen.plan.stages) - 1:
            both = torch.stack([seen.full.relu() * chunks[-1], chunks[-1].float()]).sum((1, 3, 4)).double()
            self.sums[seen.site.name] = self.sums.get(seen.site.name, 0) + both
        return now

    def values(self) -> dict[str, Tensor]:
        means = {name: (total / count.clamp(min=1)).float() for name, (total, count) in self.sums.items()}
        return {name: mean.view(-1, 1, 1) for name, mean in means.items()}


def recalibrated(
    network: nn.Module, sites: Sequence[Site], heuristic: Heuristic, batches: Sequence[Tensor]
) -> nn.Module:
    """A copy of the network whose BatchNorms have the statistics of their inputs while ``heuristic`` prunes."""
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: seen[name].append(inputs[0].detach())

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in norms.items()]
    with torch.inference_mode(), ExPrune(sites, heuristic, gain_ratio=1.0):
        for batch in batches:
            network(batch)
    for hook in hooks:
        hook.remove()
    changed = copy.deepcopy(network)
    for name, values in seen.items():
        variance, mean = torch.var_mean(torch.cat(values), dim=(0, 2, 3))
        norm = changed.get_submodule(name)
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()
    return changed


def variants(of: Callable[..., Statistics], residuals: Callable[[], Residuals]) -> Iterator[Variant]:
    """The variants. ``of(order, stages)`` returns the statistics for one of them."""
    base = of("layer", STAGES)
    yield "optimal: order of the layer, 5 stages, looking ahead", lambda lam: Optimal(lam, STAGES, base), LAMS
    yield "  without looking ahead", lambda lam: Optimal(lam, STAGES, base, ahead=False), LAMS
    even = {name: replace(one, gradient=torch.ones_like(one.gradient)) for name, one in base.items()}
    scale = torch.cat([one.gradient for one in base.values()]).mean().item()
    yield "  all neurons of equal weight (no gradients)", lambda lam: Optimal(lam / scale, STAGES, even), LAMS
    for order in ("model", "neuron"):
        other = of(order, STAGES)
        yield f"  order: {order}", lambda lam, other=other: Optimal(lam, STAGES, other), LAMS
    for stages in ((32,), (32, 128), (16, 32, 64, 96, 128, 192, 256), MANY):
        other = of("layer", stages)
        name = "stage" if len(stages) == 1 else "stages"
        yield f"  {len(stages)} {name}", lambda lam, s=stages, other=other: Optimal(lam, s, other), LAMS
    best = of("neuron", MANY)
    yield f"  order: neuron, {len(MANY)} stages", lambda lam: Optimal(lam, MANY, best), LAMS
    yield "calibrated: order of the layer, 5 stages", lambda tau: Calibrated(tau, STAGES, base), TAUS
    measured = residuals()
    yield "  measured quantiles", lambda tau: Empirical(tau, base, measured), TAUS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("vgg11_bn", "resnet18"))
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()

    def subject(order: str, stages: Sequence[int]) -> Subject:
        optimal = ("exprune=optimal", "exprune.lam=1e-11", f"exprune.order={order}", f"exprune.stages={list(stages)}")
        return subject_of(*SETTINGS[options.model], *optimal)

    first = subject("layer", STAGES)
    network = first.task.network.eval()
    images = torch.cat([batch for batch, _ in first.loader("valid")])[: options.images].split(250)
    training = first.data.calibration_dataloader(512, torch.Generator().manual_seed(1))
    training = [batch for batch, _ in training]

    def predicted(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in images]).double().log_softmax(1)

    dense = predicted(network)

    def measured(
        model: nn.Module, sites: Sequence[Site], heuristic: Heuristic, inside: Any = None
    ) -> tuple[float, float]:
        with ExPrune(sites, heuristic, gain_ratio=1.0) as run, inside or contextlib.nullcontext():
            pruned = predicted(model)
        return 100 * run.flops.saved, divergence(dense, pruned)

    def with_expected_values(lam: float, statistics: Statistics) -> tuple[float, float]:
        heuristic = Remembering(lam, statistics)
        with torch.inference_mode(), ExPrune(first.sites, heuristic, gain_ratio=1.0):
            for batch in training:
                network(batch)
                heuristic.stopped.clear()
        return measured(network, first.sites, heuristic, ExpectedValues(heuristic, heuristic.values()))

    @functools.cache
    def of(order: str, stages: Sequence[int]) -> Statistics:
        return calibrate(subject(order, stages))

    def residuals() -> Residuals:
        heuristic = Residuals(of("layer", STAGES))
        with torch.inference_mode(), ExPrune(first.sites, heuristic, gain_ratio=1.0):
            for batch in training:
                network(batch)
        return heuristic

    rows = []

    def add(name: str, points: Sequence[tuple[float, float]]) -> None:
        saved, apart = np.array(points).T
        figures = {"saved_percent": saved.round(2).tolist(), "kl": apart.round(5).tolist()}
        rows.append({"variant": name, **at_levels(points, LEVELS), **figures})

    for name, make, knobs in tqdm(list(variants(of, residuals)), disable=None):
        add(name, [measured(network, first.sites, make(knob)) for knob in knobs])
        if name.startswith("optimal"):
            points = []
            for knob in knobs:
                other = recalibrated(network, first.sites, make(knob), training)
                sites = find_sites(other, images[0][:2])
                points.append(measured(other, sites, make(knob)))
            add("  BatchNorms recalibrated under pruning", points)
            base = of("layer", STAGES)
            add("  expected values in place of zeros", [with_expected_values(lam, base) for lam in LAMS])
    saved, apart = measured(network, first.sites, Oracle())
    rows.append({"variant": "oracle, from 32 terms", "saved_percent": [round(saved, 2)], "kl": [round(apart, 5)]})
    table = pd.DataFrame(rows).round(2)
    write_whole(INTO / f"{options.model}/ablation.csv", lambda partial: table.to_csv(partial, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
