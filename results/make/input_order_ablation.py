"""Make NETWORK/input_order_ablation.csv: the contribution of each part of the order of each input, on validation
inputs.

    python results/make/input_order_ablation.py gnn        (or opt, vgg11_bn, resnet18, vgg11_bn_static)

Each variant runs at several prices. A row has the savings at which its predictions are 0.001 and 0.01 nats (mean KL
divergence, interpolated) from the dense network's. Rows that exist already are not measured again. The released
checkpoint is used; EXPRUNE_DATA_DIR names the data.
"""

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from composed import at_levels, divergence, first_batches, log_probabilities, subject_of
from networks import INTO, SETTINGS
from tqdm import tqdm

import torch  # isort: skip
from torch import Tensor  # isort: skip

from exprune.core import ExPrune, Heuristic, Magnitude, Optimal, Prefix, Recorder, Site, SiteStatistics
from exprune.core.accounting.plan import BY_INPUT
from exprune.core.heuristics.calibrated_test import STAGES, STAGES_BY_INPUT
from exprune.files import write_whole
from exprune.lab.evaluation.calibration import statistics_of
from exprune.lab.evaluation.subject import Subject

FIVE, SEVEN = STAGES, STAGES_BY_INPUT
MANY = (8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448)
INPUTS = {"gnn": 1000, "opt": 4000, "vgg11_bn": 500, "resnet18": 250, "vgg11_bn_static": 500}
LAMS = {
    "gnn": (3e-12, 3e-11, 3e-10, 3e-9),
    "opt": (1e-9, 1e-8, 1e-7),
    "vgg11_bn": (3e-12, 3e-11, 3e-10),
    "resnet18": (1e-12, 1e-11, 1e-10),
    "vgg11_bn_static": (1e-10, 1e-9, 1e-8),
}
TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEVELS = (0.001, 0.01)  # nats
_ROUNDING = 1e-5  # of a row's norm


class OneWidth(Optimal):
    """Assume that every row's residual has the usual width after each number of terms."""

    def stop(self, seen: Prefix) -> Tensor:
        assert self.statistics is not None and seen.rest is not None
        of = self.statistics[seen.site.name]
        assert of.rest is not None
        usual = of.rest[of.stages.index(seen.n)].to(seen.rest)
        return super().stop(replace(seen, rest=torch.where(seen.rest > 0, usual, 0)))


class Together(Optimal):
    """Stop the neurons of a block of eight, the width of a register, only if all of them stop."""

    def stop(self, seen: Prefix) -> Tensor:
        stop = super().stop(seen)
        whole = stop.shape[1] // 8 * 8
        eight = stop[:, :whole].unflatten(1, (-1, 8)).all(2).repeat_interleave(8, 1)
        return torch.cat([eight, stop[:, whole:].all(1, keepdim=True).expand_as(stop[:, whole:])], 1)


class Certain(Heuristic):
    """Stop only what cannot become positive, whatever a row's remaining terms are. The network stays exact.

    By the Cauchy-Schwarz inequality, the remaining terms add at most their inputs' norm, which is known in the order of
    each input, times a norm of the neuron's weights. If no input of the layer is negative, only weights of one sign
    count. ``nonnegative`` names such layers.
    """

    def __init__(self, stages: Sequence[int], nonnegative: Collection[str]) -> None:
        super().__init__()
        self.stages, self.nonnegative = tuple(stages), nonnegative

    def order(self, site: Site) -> str:
        return BY_INPUT

    def stop(self, seen: Prefix) -> Tensor:
        assert seen.rest is not None and seen.norm is not None
        return seen.s + (seen.rest + _ROUNDING * seen.norm) * self._reach(seen) + seen.r < 0

    def overhead(self, stage: int, site: Site) -> int:
        return 3

    def _reach(self, seen: Prefix) -> Tensor:
        """The largest contribution of the remaining terms per unit of their norm (outputs,)."""
        if "reach" not in seen.kept:
            assert seen.weight is not None and seen.site.weight is not None
            own = seen.site.weight.flatten(1).unflatten(1, (seen.site.terms, -1))
            norms = own.square().sum((0, 2))  # (terms,), by which the norm of what is left weighs the terms
            weight = seen.weight.unflatten(0, (-1, len(norms)))
            weight = weight.clamp(min=0) if seen.site.name in self.nonnegative else weight
            seen.kept["reach"] = (weight.square().sum(0) / norms.clamp(min=1e-30)[:, None]).sum(0).sqrt()
        return seen.kept["reach"]


def refitted(subject: Subject, lam: float, base: dict[str, SiteStatistics], predict: bool = False) -> Optimal:
    """Each site's lines, measured on the inputs it receives when the sites before it are pruned at the same price."""
    generator = torch.Generator().manual_seed(subject.cfg.seed)
    batches = list(subject.data.calibration_dataloader(subject.cfg.exprune.inputs, generator))
    found: dict[str, SiteStatistics] = {}
    sites = [site for site in subject.sites if site.eligible]
    for k, site in enumerate(sites):
        before = ExPrune(sites[:k], Optimal(lam, SEVEN, found, predict=predict) if k else None, gain_ratio=1000)
        with before, Recorder([site], SEVEN, {site.name: BY_INPUT}) as recorder:
            log_probabilities(subject, batches, before, recorder)
        found[site.name] = replace(recorder.statistics()[site.name], gradient=base[site.name].gradient)
    return Optimal(lam, SEVEN, found, predict=predict)


def nonnegative(subject: Subject, batches: Sequence[Any]) -> set[str]:
    """The names of the sites that receive no negative input in any of these batches."""
    lowest: dict[str, float] = {}
    hooks = []
    for site in subject.sites:

        def note(_: Any, given: tuple[Tensor, ...], name: str = site.name) -> None:
            lowest[name] = min(lowest.get(name, 0.0), float(given[0].min()))

        hooks.append(subject.task.network.get_submodule(site.name).register_forward_pre_hook(note))
    log_probabilities(subject, batches)
    for hook in hooks:
        hook.remove()
    return {name for name, low in lowest.items() if low >= 0}


def variants(network: str) -> Iterator[tuple[str, Subject, Callable[[float], Heuristic], Sequence[float]]]:
    def subject(order: str, stages: Sequence[int]) -> Subject:
        optimal = ("exprune=optimal", "exprune.lam=1e-11", f"exprune.order={order}", f"exprune.stages={list(stages)}")
        return subject_of(*SETTINGS[network], *optimal)

    lams, first = LAMS[network], subject("input", SEVEN)
    base = statistics_of(first)
    first.task.network.eval()
    yield "order of each input, 7 stages from 8 terms on", first, lambda lam: Optimal(lam, SEVEN, base), lams
    yield "  one width for all rows", first, lambda lam: OneWidth(lam, SEVEN, base), lams
    yield "  neurons stopped in blocks of 8", first, lambda lam: Together(lam, SEVEN, base), lams
    yield "  with predictions", first, lambda lam: Optimal(lam, SEVEN, base, predict=True), lams
    yield "  lines refitted behind pruned sites", first, lambda lam: refitted(first, lam, base), lams
    yield "  with predictions, refitted likewise", first, lambda lam: refitted(first, lam, base, predict=True), lams
    yield "  without looking ahead", first, lambda lam: Optimal(lam, SEVEN, base, ahead=False), lams
    even = {name: replace(of, gradient=torch.ones_like(of.gradient)) for name, of in base.items()}
    scale = float(torch.cat([of.gradient for of in base.values()]).mean())
    yield "  all neurons of equal weight", first, lambda lam: Optimal(lam / scale, SEVEN, even), lams
    for name, stages in (("5 stages from 32 terms on", FIVE), (f"{len(MANY)} stages from 8 terms on", MANY)):
        other = subject("input", stages)
        found = statistics_of(other)
        other.task.network.eval()
        yield f"  {name}", other, lambda lam, of=found, stages=stages: Optimal(lam, stages, of), lams
    yield "small inputs left out (magnitude)", first, lambda tau: Magnitude(tau, base), TAUS
    batches, _ = first_batches(first.loader("valid"), first, INPUTS[network])
    exact = nonnegative(first, batches)
    yield f"what cannot become positive, {len(MANY)} stages (exact)", first, lambda _: Certain(MANY, exact), (0.0,)
    layer = subject("layer", SEVEN)
    of_layer = statistics_of(layer)
    layer.task.network.eval()
    yield "order of the layer, 7 stages from 8 terms on", layer, lambda lam: Optimal(lam, SEVEN, of_layer), lams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=INPUTS)
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="measure the variants with these words in their name"
    )
    options = parser.parse_args()
    network = options.network
    file = INTO / f"{network}/input_order_ablation.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    known, batches, dense = {row["variant"] for row in rows}, None, None
    for name, subject, make, knobs in tqdm(variants(network), disable=None):
        if name in known or options.only not in name:
            continue
        if batches is None:
            batches, dense = first_batches(subject.loader("valid"), subject, INPUTS[network])
        points, nonzero = [], []
        for knob in knobs:
            with ExPrune(subject.sites, make(knob), gain_ratio=1000) as run:
                pruned = log_probabilities(subject, batches, run)
            points.append((100 * run.flops.saved, divergence(dense, pruned)))
            without = run.flops.dense_without_zero_terms
            nonzero.append(None if without is None else round(100 * (1 - run.flops.pruned / without), 2))
        found = {key: round(value, 2) for key, value in at_levels(points, LEVELS).items()}
        saved, apart = ([round(of, 6) for of in both] for both in zip(*points, strict=True))
        rows.append({"variant": name, **found, "saved_percent": saved, "without_zero_terms": nonzero, "kl": apart})
        table = pd.DataFrame(rows).assign(inputs=len(dense))
        write_whole(file, lambda partial: table.to_csv(partial, index=False))  # noqa: B023
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
