"""Measure the statistics of sites in two passes over batches (docs/method.md, section 8)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core.calibration.backward import frozen
from exprune.core.calibration.importance import InputVariances, SquaredGradients, term_order
from exprune.core.calibration.lines import SiteStatistics, TooFewRowsError
from exprune.core.calibration.recorder import Recorder
from exprune.core.discovery.sites import Site

Rows = Tensor | None  # which rows of a batch are data, see ExPrune; None: all
Step = tuple[Rows, Callable[[], Any]]  # a batch's rows, and a function that runs the network on it


def measure_statistics(
    network: nn.Module,
    sites: Sequence[Site],
    losses: Iterable[Step],
    calls: Iterable[Step],
    order: str,
    stages: Sequence[int],
) -> tuple[dict[str, SiteStatistics], dict[str, str]]:
    """Measure the statistics of the eligible sites.

    The first pass measures input variances and gradients, forward and backward. The second pass measures the partial
    sums in the resulting order.

    Args:
        network: The network in eval mode.
        sites: The layers, from `find_sites`.
        losses: Steps that run the network and return the loss whose gradients say how much each neuron matters. A
            quarter of the batches is enough, as this pass is the most expensive per batch.
        calls: Steps that run the network.
        order: The order of evaluation; see `term_order`.
        stages: How many terms are evaluated before each test, ascending.

    Returns:
        The statistics by site name, and the reasons why other eligible sites have none.

    Raises:
        SettingError: If some rows were NaN, infinite or too large to be squared.
    """
    with frozen(network), SquaredGradients(sites) as gradients, InputVariances(sites) as variances:
        for rows, loss in losses:
            gradients.rows = variances.rows = rows
            with torch.enable_grad():
                loss().backward()
    reached, squared = variances.variances(), gradients.mean()
    refused = {
        site.name: "was not reached by the batches" for site in sites if site.eligible and site.name not in reached
    }
    sites = [replace(site, reason=refused.get(site.name, site.reason)) for site in sites]
    orders = {site.name: term_order(site, reached[site.name], order) for site in sites if site.eligible}
    with torch.no_grad(), Recorder(sites, stages, orders) as recorder:
        for recorder.rows, run in calls:
            run()
    statistics = {}
    for name in recorder.measured:
        try:
            statistics[name] = replace(recorder.statistics_of(name), gradient=squared[name])
        except TooFewRowsError as error:
            refused[name] = str(error)
    return statistics, refused
