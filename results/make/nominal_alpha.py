"""Make exchangeability/nominal.csv and explained.csv: the level of the test, and what first terms explain.

    python results/make/nominal_alpha.py              # all networks; existing rows are not measured again
    python results/make/nominal_alpha.py vgg11_bn     (or gnn, gnn_80, opt, vgg11_bn_paper, resnet18)
    python results/make/nominal_alpha.py --figures    # draw nominal.png and explained.png from the tables

On the test split, from the released checkpoints, dense: at 4,096 rows of each site (nodes, tokens, or two positions of
each image, drawn at random) all terms of 64 neurons. The test after 32 terms is made of them in three orders. A row
and neuron is at the boundary where the true mean term is within a quarter of its estimate's standard error from 0.
Seed 0. EXPRUNE_DATA_DIR names the data.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from composed import log_probabilities, subject_of
from networks import INTO, SETTINGS, whole
from scipy.stats import binom
from tqdm import tqdm

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip
from torch.nn import functional as F  # isort: skip

from exprune.core import ExPrune, Prefix, Site
from exprune.core.heuristics.heuristic import Heuristic
from exprune.files import write_whole
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.exchangeability.nominal_level import Tested, correlation, explained, stats_test

FOLDER = INTO / "exchangeability"
NOMINAL, EXPLAINED = FOLDER / "nominal.csv", FOLDER / "explained.csv"
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
NETWORKS = {"gnn": 512, "vgg11_bn": 2048, "resnet18": 2048, "opt": 8192, "gnn_80": 512, "vgg11_bn_paper": 2048}
DRAWN_NETWORKS = ("gnn", "vgg11_bn", "resnet18", "opt")  # in the figures
ROWS, NEURONS, N, NEAR, ENOUGH = 4096, 64, 32, 0.25, 100
FIRST, DRAWN, BY_SIZE, BY_LAYER = "first", "drawn for each row", "largest of the row first", "order of the layer"
PREFIXES = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384)


class Watching(Heuristic):
    """Stops nothing; keeps all terms of some neurons at some rows of each site.

    Args:
        inputs: how many inputs (nodes and tokens of a Linear: rows) are going to come, of which to draw the rows.
    """

    needs_full = True

    def __init__(self, inputs: int, seed: int = 0) -> None:
        super().__init__(None, 1)
        self.inputs, self.generator = inputs, torch.Generator().manual_seed(seed)
        self.x: dict[str, Tensor] = {}
        self.neurons: dict[str, Tensor] = {}
        self.kept: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}  # x at a row, its terms, the rest

    def see(self, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A hook of the site's module, for its input."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            self.x[site.name] = x if site.spatial_dims else x.reshape(-1, x.shape[-1])

        return hook

    def stop(self, seen: Prefix) -> Tensor:
        site, full = seen.site, seen.full
        assert full is not None
        name, never = site.name, torch.zeros_like(full, dtype=torch.bool)
        x, self.x[name] = self.x[name].split([len(full), len(self.x[name]) - len(full)])
        if name not in self.neurons:
            self.neurons[name] = torch.randperm(site.outputs, generator=self.generator)[:NEURONS].sort().values
        at, patches = self._rows(x, site, seen.rows)
        if not len(patches):
            return never
        chosen = self.neurons[name]
        r = torch.as_tensor(seen.r).expand_as(full).movedim(1, -1)[at][:, chosen]
        weight = site.module.weight[chosen].flatten(2) if site.spatial_dims else site.module.weight[chosen, :, None]
        terms = torch.einsum("rck,ock->roc", patches, weight)
        z = full.movedim(1, -1)[at][:, chosen]
        plain = terms.sum(-1)  # z is a line of it: its slope is what BatchNorm multiplies this neuron's terms by
        squares = (plain * plain).sum(0)
        terms *= torch.where(squares > 0, (plain * (z - r)).sum(0) / squares, 1)[:, None]
        torch.testing.assert_close(terms.sum(-1) + r, z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))
        size = patches.norm(dim=2) * site.module.weight.flatten(2).norm(dim=(0, 2)) if site.spatial_dims else (
            patches[..., 0].abs() * site.module.weight.norm(dim=0))  # fmt: skip
        self.kept.setdefault(name, []).append((size, terms, r))
        return never

    def _rows(self, x: Tensor, site: Site, data: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Where the drawn rows are in the outputs, without their channels, and what they see: (rows, terms, kernel)."""
        if not site.spatial_dims:
            there = torch.rand(len(x), generator=self.generator) < ROWS / self.inputs
            there = there if data is None else there & data.flatten()
            rows = there.nonzero()[:, 0]
            return (rows,), x[rows][..., None]
        module = site.module
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        size = [(s - 1) // stride + 1 for s, stride in zip(x.shape[2:], module.stride, strict=True)]  # padded by half
        each = ROWS // self.inputs
        images = torch.arange(len(x)).repeat_interleave(each)
        positions = torch.randint(patches.shape[2], (len(images),), generator=self.generator)
        seen = patches[images, :, positions].unflatten(1, (x.shape[1], -1))
        return (images, positions // size[1], positions % size[1]), seen


def watched(network: str) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], dict[str, Tensor]]:
    """Of each site the sizes, terms and rests at its rows; and the orders of the layers."""
    subject = subject_of(*SETTINGS[network], "exprune=calibrated", "exprune.order=layer", "exprune.tau=0.1")
    orders = {name: of.order for name, of in statistics_of(subject).items()}
    subject.task.network.eval()
    linear = not any(site.spatial_dims for site in subject.sites if site.eligible)
    batches, inputs, rows = [], 0, 0
    for batch in subject.loader("test"):
        batches.append(batch)
        inputs += int(batch.num_graphs) if hasattr(batch, "num_graphs") else len(log_probabilities(subject, [batch]))
        rows += int(batch.num_nodes) if hasattr(batch, "num_graphs") else 0
        if inputs >= NETWORKS[network]:
            break
    watching = Watching((rows or inputs) if linear else inputs)
    hooks = [site.module.register_forward_pre_hook(watching.see(site)) for site in subject.sites if site.eligible]
    with ExPrune(subject.sites, watching) as run:
        log_probabilities(subject, tqdm(batches, desc=network, disable=None), run)
    for hook in hooks:
        hook.remove()
    return {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in watching.kept.items()}, orders


def rates(of: Tested, alpha: float, finite: bool) -> dict[str, Any]:
    """What is stopped at the boundary, of those that are not negative, and of all, were each at the boundary."""
    stopped, near = of.stopped(alpha, finite), of.distance.abs() <= NEAR
    rows, times = near.sum(0), (stopped & near).sum(0)
    enough = rows >= ENOUGH
    by_neuron = (times / rows.clamp(min=1))[enough].numpy()
    rows, times = rows.numpy(), times.numpy()
    above = binom.sf(times - 1, rows, alpha)[enough.numpy()] < 0.005
    below = binom.cdf(times, rows, alpha)[enough.numpy()] < 0.005
    quantiles = np.quantile(by_neuron, (0.1, 0.5, 0.9)) if len(by_neuron) else [math.nan] * 3
    not_negative = of.distance >= 0
    return {
        "boundary": int(rows.sum()),
        "stopped_at_boundary": float(times.sum() / max(1, rows.sum())),
        "stopped_not_negative": float(stopped[not_negative].double().mean()),
        "stopped_centred": float(of.stopped(alpha, finite, centred=True).double().mean()),
        "neurons": len(by_neuron),
        **{f"neuron_{name}": float(q) for name, q in zip(("10", "50", "90"), quantiles, strict=True)},
        "neurons_above": float(above.mean()) if len(above) else math.nan,
        "neurons_below": float(below.mean()) if len(below) else math.nan,
    }


def orders_of(size: Tensor, layer: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """(rows, N) each."""
    rows, count = size.shape
    return {
        FIRST: torch.arange(count).expand(rows, -1),
        DRAWN: torch.rand(rows, count, generator=generator).argsort(1),
        BY_SIZE: size.argsort(1, descending=True),
        BY_LAYER: layer.expand(rows, -1),
    }


def measure(network: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of both tables."""
    kept, layers = watched(network)
    levels, shares = [], []
    pooled: dict[str, list[Tested]] = {}
    generator = torch.Generator().manual_seed(0)
    for name, (size, terms, rest) in tqdm(kept.items(), desc=f"{network}, sites", disable=None):
        about = {"network": network, "site": name, "terms": terms.shape[2], "rows": len(terms)}
        sums, rho = terms.sum(-1), correlation(terms)
        alive = sums.std(0) > 0
        rho = rho[alive]
        for order, which in orders_of(size, layers[name], generator).items():
            if order != BY_LAYER:
                found = stats_test(terms, rest, which[:, :N])
                pooled.setdefault(order, []).append(found)
                for finite, alpha in itertools.product((False, True), ALPHAS):
                    setting = {"order": order, "finite_population": finite, "alpha": alpha}
                    levels.append(about | setting | rates(found, alpha, finite))
            partial = terms.gather(2, which[:, None].expand_as(terms)).cumsum(2)
            for n in (n for n in PREFIXES if n < terms.shape[2]):
                share = explained(partial[..., n - 1], sums)[alive]
                expected = n * (1 + (terms.shape[2] - 1) * rho) / (terms.shape[2] * (1 + (n - 1) * rho))
                row = {**about, "order": order, "n": n, "neurons": int(alive.sum())}
                row |= {f"explained_{q}": float(share.nanquantile(q / 100)) for q in (10, 50, 90)}
                worth = terms.shape[2] / (1 + (terms.shape[2] - 1) * rho)
                row |= {"if_equally_correlated": float(expected.median()), "correlation": float(rho.median())}
                shares.append(row | {"effective_terms": float(worth.median())})
    for (order, found), finite, alpha in itertools.product(pooled.items(), (False, True), ALPHAS):
        about = {"network": network, "site": "all", "rows": sum(len(of.statistic) for of in found)}
        about |= {"order": order, "finite_population": finite, "alpha": alpha}
        levels.append(about | _of_all(found, alpha, finite))
    return pd.DataFrame(levels), pd.DataFrame(shares)


def _of_all(found: list[Tested], alpha: float, finite: bool) -> dict[str, Any]:
    """:func:`rates` of all sites' neurons together; each site's rows, and its finite population, are its own."""
    most = max(len(of.statistic) for of in found)

    def together(of: Callable[[Tested], Tensor]) -> Tensor:
        return torch.cat([F.pad(of(one), (0, 0, 0, most - len(one.statistic)), value=math.nan) for one in found], 1)

    def scaled(values: Callable[[Tested], Tensor]) -> Callable[[Tested], Tensor]:
        return lambda one: values(one) / (one.finite if finite else 1)

    every = Tested(
        together(scaled(lambda one: one.statistic)), together(scaled(lambda one: one.centred)),
        together(lambda one: one.distance), 1.0,
    )  # fmt: skip
    return rates(every, alpha, False)


def add(table: Path, new: pd.DataFrame) -> None:
    old = [pd.read_csv(table)] if table.exists() else []
    both = pd.concat([*old, new], ignore_index=True)
    write_whole(table, lambda partial: both.to_csv(partial, index=False, float_format="%.4g"))


def draw_nominal(rows: pd.DataFrame) -> None:
    """Plot the measured level against the nominal one: one row per network, one column per order."""
    from matplotlib.figure import Figure

    rows = rows[rows.site == "all"]
    networks, orders = list(rows.network.unique()), [FIRST, DRAWN, BY_SIZE]
    figure = Figure(figsize=(10, 2.6 * len(networks)), layout="constrained")
    for line, network in zip(
        figure.subplots(len(networks), 3, sharex=True, sharey=True, squeeze=False), networks, strict=True
    ):
        for axes, order in zip(line, orders, strict=True):
            of = rows[(rows.network == network) & (rows.order == order)]
            for finite, color in ((False, "C0"), (True, "C1")):
                one = of[of.finite_population == finite]
                label = "finite population" if finite else "as published"
                axes.plot(one.alpha, one.stopped_at_boundary, "o-", ms=3, color=color, label=label)
                axes.fill_between(one.alpha, one.neuron_10, one.neuron_90, color=color, alpha=0.15)
            axes.plot([0, 0.5], [0, 0.5], "k:", lw=1)
            axes.set_title(f"{whole(network)}: {order}", fontsize=9)
            axes.grid(alpha=0.3)
        line[0].set_ylabel("stopped at the boundary")
    for axes in line:
        axes.set_xlabel("nominal level alpha")
    line[0].legend(fontsize=8)
    write_whole(FOLDER / "nominal.png", lambda partial: figure.savefig(partial, dpi=130, format="png"))


def draw_explained(rows: pd.DataFrame) -> None:
    """Plot the share of variance that n terms explain against n / N: one panel per network, averaged over its sites."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.3), layout="constrained")
    panels, grid = figure.subplots(1, len(DRAWN_NETWORKS), sharey=True), np.linspace(0, 1, 51)
    for axes, network in zip(panels, DRAWN_NETWORKS, strict=True):
        for order, of in rows[rows.network == network].groupby("order", sort=False):
            curves = [
                np.interp(grid, [0, *(site.n / site.terms), 1], [0, *site.explained_50, 1])
                for _, site in of.groupby("site")
            ]
            axes.plot(grid, np.mean(curves, axis=0), label=order)
        axes.plot([0, 1], [0, 1], "k:", lw=1, label="independent terms")
        axes.set(title=whole(network), xlabel="share of the terms, n / N")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("share of the variance explained")
    write_whole(FOLDER / "explained.png", lambda partial: figure.savefig(partial, dpi=130, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=NETWORKS, help="all of them, if none is named")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if not options.figures:
        for network in [options.network] if options.network else NETWORKS:
            if EXPLAINED.exists() and (pd.read_csv(EXPLAINED).network == network).any():
                continue
            levels, shares = measure(network)
            add(NOMINAL, levels)
            add(EXPLAINED, shares)
            some = levels[(levels.site == "all") & levels.alpha.isin((0.01, 0.1))]
            print(some.drop(columns=["network", "site", "terms"]).to_string(index=False), flush=True)
    draw_nominal(pd.read_csv(NOMINAL))
    draw_explained(pd.read_csv(EXPLAINED))


if __name__ == "__main__":
    main()
