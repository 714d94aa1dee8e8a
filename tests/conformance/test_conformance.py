"""Third-party networks: the sites found in them, what is stopped, and what is counted."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exprune.core import ExPrune, Heuristic, Site, StatsTest, Threshold, find_sites
from exprune.core.calls.effects import tensors
from exprune.core.heuristics.heuristic import Prefix
from tests.conformance import networks_pyg, networks_torchvision, networks_transformers
from tests.conformance.network import Network, scatter
from tests.conformance.recount import (
    Count,
    Order,
    Recount,
    Rule,
    calling,
    each_its_own,
    kind_of,
    one_order,
    stats_test,
    threshold,
    weight_of,
)

TABLES = {
    "torchvision": networks_torchvision.NETWORKS,
    "transformers": networks_transformers.NETWORKS,
    "pyg": networks_pyg.NETWORKS,
}


class Twice(Heuristic):
    """Threshold at 0, after 3 terms and again after 6, in some order."""

    def __init__(self, order: Order | None = None) -> None:
        super().__init__(tau=0.0)
        self.stages = (3, 6)
        self.terms_in = order

    def stop(self, seen: Prefix) -> Tensor:
        return seen.s / seen.n + seen.r / seen.terms < 0

    def order(self, site: Site) -> Tensor | None:
        weight = weight_of(site.module)
        return None if self.terms_in is None else self.terms_in(len(weight), weight.shape[1])


RULES: dict[str, tuple[Heuristic, Rule]] = {
    "StatsTest": (StatsTest(0.3, n=5), stats_test(0.3, 5)),
    "Threshold": (Threshold(-0.01, n=4), threshold(-0.01, 4)),
    "stages": (Twice(), threshold(0.0, 3, 6)),
    "order": (Twice(one_order), threshold(0.0, 3, 6, order=one_order)),
    "orders": (Twice(each_its_own), threshold(0.0, 3, 6, order=each_its_own)),
}


@dataclass(frozen=True)
class Subject:
    """A network of a table, built."""

    network: Network
    model: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    sites: list[Site]
    callers: list[str]

    def run(self) -> Any:
        return self.model(*self.args, **self.kwargs)

    def eligible(self, n: int = 0) -> list[Site]:
        """The sites that tests for a ReLU can handle; see test_architectures.py for other activations."""
        return [site for site in self.sites if site.eligible and site.rectified and site.terms > n]


def _params() -> Iterator[Any]:
    for table, networks in TABLES.items():
        for name, network in networks.items():
            yield pytest.param(network, id=f"{table}-{name}", marks=() if network.fast else pytest.mark.slow)


@pytest.fixture(scope="module", params=_params())
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Built and run in float64, so that rounding decides nothing."""
    network: Network = request.param
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model, args, kwargs = network.build()
        scatter(model)
        sites = find_sites(model, *args, **kwargs)
        yield Subject(network, model, args, kwargs, sites, calling(model, *args, **kwargs))
    finally:
        torch.set_default_dtype(usual)


def test_every_layer_is_listed(subject: Subject) -> None:
    """Every module that calls a linear function is listed; others only with a reason. Names are unique."""
    listed = [site.name for site in subject.sites]
    assert len(set(listed)) == len(listed)
    modules = [site.module for site in subject.sites]
    # A module that computes with the weights of its parts (Swin's attention): those parts are listed, and it is named.
    elsewhere = {n for n in subject.callers for s in subject.sites if f"is used by {n}, outside" in (s.reason or "")}
    callers = [name for name in subject.callers if name not in elsewhere]
    assert [name for name in callers if subject.model.get_submodule(name) not in modules] == []
    for site in subject.sites:
        assert site.reason or (site.name in subject.callers and site.activation is not None)
        assert site.reason is None or (site.reason and "\n" not in site.reason)


def test_sites(subject: Subject) -> None:
    """There are as many sites as the architecture has, each with the description of its module."""
    sites = subject.eligible()
    assert len(sites) == subject.network.eligible, [site.name for site in sites]
    for site in sites:
        weight = weight_of(site.module)
        assert site.module is subject.model.get_submodule(site.name)
        assert site.kind == kind_of(site.module)
        assert site.terms == weight.shape[1]
        assert site.weights_per_term == weight[0, 0].numel()
        assert site.spatial == subject.network.flattened.get(site.name, 1)
        assert not hasattr(site, "weight") or torch.equal(site.weight, weight)
    assert sum(site.residual for site in sites) == subject.network.residual


def test_layers_that_feed_a_relu(subject: Subject) -> None:
    """The sites are those whose outputs reach ReLUs one by one; autograd finds the same ones."""
    with Recount(subject.model, _layers(subject))() as watched:
        subject.run()
    for site in subject.sites:
        reached = watched.reached.get(site.name, 0)
        if site.relu or (site.rectified and site.eligible):  # its square is one module
            assert reached == watched.calls[site.name] > 0, site.name
        elif reached:
            assert any(word in site.reason for word in ("shortcut", "only some", "mul", "BatchNorm")), site


@pytest.mark.parametrize("rule", RULES)
def test_recount(subject: Subject, rule: str) -> None:
    """A run stops what the definition stops, counts it, and computes the rest."""
    heuristic, definition = RULES[rule]
    names = [site.name for site in subject.eligible(definition.stages[0])]
    if not names:
        pytest.skip("no site")
    recount = Recount(subject.model, _layers(subject), names, definition, subject.network.flattened)
    with recount():
        expected = list(tensors(subject.run()))
    with torch.no_grad(), ExPrune(subject.sites, heuristic) as run:
        out = list(tensors(subject.run()))
    assert [count.site.name for count in run.flops.sites] == names
    for count in run.flops.sites:
        found = Count(
            stages=len(count.stopped),
            outputs=count.outputs,
            negative=int(count.negative),
            wrong=int(count.wrong),
            dense_flops=count.dense_flops,
            pruned_flops=count.pruned_flops,
        )
        found.stopped = count.stopped
        assert found == recount.counts[count.site.name], count.site.name
        assert count.site.residual == recount.beside[count.site.name], count.site.name
    assert sum(count.pruned for count in run.flops.sites) > 0
    assert len(out) == len(expected) > 0
    for mine, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_dense_flops(subject: Subject) -> None:
    """FlopCounterMode counts the same where nothing is fused."""
    with torch.no_grad(), ExPrune(subject.sites, None) as run:
        subject.run()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        subject.run()
    assert run.flops.dense == run.flops.unpruned == counter.get_total_flops()


def test_dense_flops_in_single_precision(subject: Subject) -> None:
    """The cost is the same if LSTMs are fused, or if attention uses other kernels."""
    fused = any(isinstance(module, nn.RNNBase | nn.MultiheadAttention) for module in subject.model.modules())
    if not fused and not subject.network.fast:
        pytest.skip("nothing that another kernel computes")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        subject.run()
    model, args, kwargs = deepcopy(subject.model).float(), _single(subject.args), _single(subject.kwargs)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.no_grad(), ExPrune(find_sites(model, *args, **kwargs), None) as run:
            model(*args, **kwargs)
    finally:
        torch.set_default_dtype(torch.float64)
    assert run.flops.dense == counter.get_total_flops()


def _single(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _single(value) for key, value in structure.items()}
    if isinstance(structure, tuple | list):
        return type(structure)(_single(value) for value in structure)
    return structure.float() if isinstance(structure, Tensor) and structure.is_floating_point() else structure


def test_nothing_is_left_uncounted(subject: Subject) -> None:
    """Only the operations known to lack a formula lack one."""
    with torch.no_grad(), ExPrune(subject.sites, None) as run:
        subject.run()
    assert run.flops.uncounted == subject.network.uncounted


def _layers(subject: Subject) -> list[str]:
    return [site.name for site in subject.sites if site.name in subject.callers]
