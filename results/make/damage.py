"""Make NETWORK/damage.csv and NETWORK/damage.png: the damage that optimal stopping expects, and the measured damage.

    python results/make/damage.py gnn        (or opt, vgg11_bn, gelu, llama)

The expected damage is the sum of the estimated costs of all stopped neurons. The measured damage is the mean KL
divergence of the network's predictions from the dense network's, which equals the increase of the loss in expectation.
Both are determined at several prices on a part of the validation split. The released checkpoint is used;
EXPRUNE_DATA_DIR names the data.

The estimate assumes that the errors of an input's neurons and positions are independent. The deviation from this is
measured on calibration inputs, for one site at a time with all others dense, at one price. This gives one factor per
site, which is applied in the second column of estimates.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from composed import divergence, first_batches, log_probabilities, subject_of
from matplotlib.figure import Figure
from networks import INTO, SETTINGS, WITHOUT_RELU
from tqdm import tqdm

import torch  # isort: skip
from torch import Tensor  # isort: skip

from exprune.core import ExPrune, Optimal, Prefix, select_sites
from exprune.core.decisions.apply import expected
from exprune.core.decisions.moments import gauss_hermite, half_moment, predicted_moment
from exprune.files import write_whole
from exprune.lab.evaluation.subject import Subject
from exprune.lab.selection.knobs import maker

# Settings; the price at which the factors are measured, inputs of the calibration and of the validation data.
NETWORKS: dict[str, tuple[tuple[str, ...], float, int, int]] = {
    "gnn": ((*SETTINGS["gnn"], "exprune.predict=true"), 5e-11, 500, 1000),
    "opt": ((*SETTINGS["opt"], "exprune.predict=true", "exprune.scope=all", "head=dominance"), 1e-8, 4000, 4000),
    "vgg11_bn": (SETTINGS["vgg11_bn"], 1e-11, 250, 500),
    "gelu": ((*WITHOUT_RELU["gelu"], "exprune.predict=true"), 1e-9, 2000, 4000),
    "llama": ((*WITHOUT_RELU["llama"], "exprune.predict=true"), 1e-9, 2000, 4000),
}
DECADES = (0.1, 1, 10, 100)  # times that price


class Expecting(Optimal):
    """Add up the expected cost of each neuron that is stopped, by site.

    It stops the same neurons as an `Optimal` with the same settings.
    """

    def __init__(self, like: Optimal) -> None:
        super().__init__(like.lam, like.stages, like.statistics, like.ahead, like.predicts)
        self.expected: dict[str, float] = {}
        self._stopped: Tensor | None = None

    def stop(self, seen: Prefix) -> Tensor:
        now = super().stop(seen)
        before = self._stopped if seen.stage and self._stopped is not None else torch.zeros_like(now)
        self._stopped = before | now
        fresh = now & ~before
        damage = self._damage(seen, fresh if seen.rows is None else fresh & seen.rows)
        self.expected[seen.site.name] = self.expected.get(seen.site.name, 0.0) + float(damage.sum(dtype=torch.float64))
        return now

    def _damage(self, seen: Prefix, stopped: Tensor) -> Tensor:
        """The expected cost of every neuron that is stopped now (docs/method.md, sections 8 and 10)."""
        assert self.statistics is not None and seen.rest is not None
        of = self.statistics[seen.site.name]
        assert of.gradient is not None
        mean = expected(seen)
        sd = (seen.rest * of.sd[of.stages.index(seen.n)].to(mean))[stopped]
        gradient, mean = of.gradient.to(mean).expand_as(mean)[stopped], mean[stopped]
        sd = sd.clamp(min=torch.finfo(sd.dtype).tiny)
        activation = seen.site.activation if seen.site.before_activation else None
        if activation is None:  # what stops outputs its expectation
            return gradient / 2 * sd**2
        if activation.relu:
            moment = predicted_moment if self.predicts else half_moment
            return gradient / 2 * sd**2 * moment((mean / sd).clamp(-10, 10))
        nodes, weights = (values.to(mean) for values in gauss_hermite(48))
        outputs = torch.zeros_like(mean)
        if self.predicts:
            predicted = self.prediction(seen)[stopped]
            outputs = activation(predicted).masked_fill(predicted == -math.inf, 0.0)
        errors = torch.zeros_like(mean)
        for node, weight in zip(nodes, weights, strict=True):
            errors += weight * (activation(mean + sd * node) - outputs) ** 2
        return gradient / 2 * errors


def damages(
    subject: Subject, heuristic: Optimal, batches: Sequence[Any], dense: Tensor, sites: str | None = None
) -> tuple[dict[str, float], float, float]:
    """Expected damage by site and measured damage per input in nats, and the share of FLOPs saved."""
    expecting = Expecting(heuristic)
    chosen = select_sites(subject.sites, sites, subject.cfg.exprune.scope)
    with ExPrune(chosen, expecting, gain_ratio=subject.cfg.exprune.gain_ratio) as run:
        pruned = log_probabilities(subject, batches, run)
    expected = {name: of / len(dense) for name, of in expecting.expected.items()}
    return expected, divergence(dense, pruned), run.flops.saved


def table_of(network: str) -> pd.DataFrame:
    settings, price, some, inputs = NETWORKS[network]
    optimal = ("exprune=optimal", f"exprune.lam={price}", "exprune.order=input")
    subject = subject_of(*settings, *optimal)
    make = maker(subject)
    subject.task.network.eval()
    generator = torch.Generator().manual_seed(subject.cfg.seed + 1)  # others than those of the statistics
    calibration, dense = first_batches(subject.data.calibration_dataloader(some, generator), subject, some)
    names = [site.name for site in subject.sites if site.eligible]
    factors = {}
    for name in tqdm(names, desc="factors", disable=None):
        expected, measured, _ = damages(subject, make(), calibration, dense, name)
        factors[name] = measured / expected[name] if expected[name] else 1.0
    valid, dense = first_batches(subject.loader("valid"), subject, inputs)
    rows = []
    for times in tqdm(DECADES, desc="prices", disable=None):
        expected, measured, saved = damages(subject, make(lam=times * price), valid, dense)
        corrected = sum(factors[name] * of for name, of in expected.items())
        figures = {"expected": sum(expected.values()), "expected_with_factors": corrected, "measured": measured}
        about = {"network": network, "inputs": len(dense), "lam": times * price, "saved_percent": round(100 * saved, 3)}
        rows.append(about | {name: float(f"{value:.4g}") for name, value in figures.items()})
    told = "; ".join(f"{name} {factor:.3g}" for name, factor in factors.items())
    return pd.DataFrame(rows).assign(factors=told)


def plot(table: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for column, label in (("expected", "estimate"), ("expected_with_factors", "with one factor a site")):
        axes.plot(table[column], table["measured"], "o-", label=label)
    ends = [table[["expected", "measured"]].min().min(), table[["expected_with_factors", "measured"]].max().max()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(
        ends, [end / 2 for end in ends], [end * 2 for end in ends], color="grey", alpha=0.2, label="within 2"
    )
    axes.set(
        xscale="log", yscale="log", xlabel="expected damage, nats per input", ylabel="measured damage, nats per input"
    )
    axes.set_title(f"{table['network'].iloc[0]}: {table['inputs'].iloc[0]:,} validation inputs")
    axes.legend()
    axes.grid(alpha=0.3)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=120, format="png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    network = parser.parse_args().network
    table = table_of(network)
    write_whole(INTO / f"{network}/damage.csv", lambda partial: table.to_csv(partial, index=False))
    plot(table, INTO / f"{network}/damage.png")
    print(table.drop(columns="factors").to_string(index=False))


if __name__ == "__main__":
    main()
