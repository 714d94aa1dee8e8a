"""Plans: which terms of a site's neurons are evaluated before each test, and their cost (docs/method.md, section 3)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.settings import plain_knob

BY_INPUT = "input"  # the order in which each row's largest terms come first


@dataclass(frozen=True)
class Stage:
    """One test.

    Attributes:
        n: The number of a neuron's terms that are evaluated before it.
        channels: The input channels that are evaluated since the previous stage.
        keep: Which of these channels each output channel evaluates (outputs, channels), bool; None means all.
        tested: Which output channels are tested (outputs,), bool; None means all.
        flops: FLOPs of the first n terms of one output: one number, or one per output channel. For a masked site in the
            order of each input it is the expected number.
    """

    n: int
    channels: slice | Tensor
    keep: Tensor | None
    tested: Tensor | None
    flops: int | Tensor

    @property
    def tests_any(self) -> bool:
        return self.tested is None or bool(self.tested.any())


@dataclass(frozen=True)
class Plan:
    """The stages of a site. There are none if no test would be useful.

    Attributes:
        stages: The tests, in order.
        terms: The number of terms N of a neuron: one number, or one per output channel.
        dense_flops: FLOPs of one output: one number, or one per output channel.
        rest: The input channels that no stage evaluates, if each channel is evaluated for all outputs at once;
            otherwise None.
        weights: The number of weights left in each term of a masked site (outputs, N); None without a mask.
        by_input: Whether terms are evaluated in the order of each input. Then the channels of each stage are all
            channels.
    """

    stages: tuple[Stage, ...]
    terms: int | Tensor
    dense_flops: int | Tensor
    rest: slice | Tensor | None = None
    weights: Tensor | None = None
    by_input: bool = False


def ascending(stages: Sequence[int]) -> bool:
    """Whether there is at least one stage, and stages are whole numbers from 1 on, in ascending order."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in stages)
    return bool(stages) and whole and stages[0] >= 1 and all(a < b for a, b in itertools.pairwise(stages))


def checked(stages: Sequence[int]) -> tuple[int, ...]:
    """The stages as ints.

    Raises:
        SettingError: If they are not `ascending`.
    """
    stages = plain_knob(stages)
    if not isinstance(stages, list) or not ascending(stages):
        raise SettingError(
            f"stages={stages}: must be whole numbers of terms, at least 1, each larger than the one before"
        )
    return tuple(stages)


def make_plan(site: Site, stages: Sequence[int], gain_ratio: float, order: Tensor | str | None = None) -> Plan:
    """Plan the terms in the given order, or else in the model's own. Under a static mask, the model's own order is
    replaced by the terms with the fewest weights first.

    Args:
        site: The site.
        stages: How many terms are evaluated before each test, ascending.
        gain_ratio: Used only if static pruning removed weights. An output channel is not tested after n terms if ``(its
            weights not yet evaluated) * gain_ratio < n``. Infinity tests as long as weights are left.
        order: The order of all N terms (N,), or one per neuron (outputs, N); or ``"input"``. With ``"input"``, n terms
            are the first n of all N, and each neuron evaluates those of them that it has.

    Raises:
        SettingError: If ``order`` is another string.
    """
    if isinstance(order, str):
        if order != BY_INPUT:
            raise SettingError(f"{site.name}: an order of evaluation is a tensor, None or {BY_INPUT!r}, not {order!r}")
        return _by_input(site, stages, gain_ratio)
    mask = site.mask
    if mask is not None:
        return _masked(site, mask.cpu(), stages, gain_ratio, order)
    if order is not None and order.dim() == 2:
        return _ordered(site, stages, order)
    return _unmasked(site, stages, site.order() if order is None else order)


def _unmasked(site: Site, stages: Sequence[int], order: Tensor | None) -> Plan:
    planned, start = [], 0
    for n in stages:
        if n < site.terms:
            channels = slice(start, n) if order is None else order[start:n]
            planned.append(Stage(n, channels, None, None, 2 * n * site.weights_per_term))
            start = n
    rest = slice(start, site.terms) if order is None else order[start:]
    return Plan(tuple(planned), site.terms, site.dense_flops, rest)


def _ordered(site: Site, stages: Sequence[int], order: Tensor) -> Plan:
    position, planned, start = order.argsort(dim=1), [], 0
    for n in stages:
        if n < site.terms:
            planned.append(Stage(n, *_between(position, start, n), None, 2 * n * site.weights_per_term))
            start = n
    return Plan(tuple(planned), site.terms, site.dense_flops)


def _between(position: Tensor, start: int, end: int, there: Tensor | bool = True) -> tuple[Tensor, Tensor]:
    """The channels with a term at positions start to end of any neuron's order, and of which (outputs, channels)."""
    chosen = (position >= start) & (position < end) & there
    channels = chosen.any(0).nonzero().squeeze(1)
    return channels, chosen[:, channels]


def _by_input(site: Site, stages: Sequence[int], gain_ratio: float) -> Plan:
    channels, mask, planned = slice(0, site.terms), site.mask, []
    stages = [n for n in stages if n < site.terms]
    if mask is None:
        planned = [Stage(n, channels, None, None, 2 * n * site.weights_per_term) for n in stages]
        return Plan(tuple(planned), site.terms, site.dense_flops, by_input=True)
    weights = mask.cpu().reshape(*mask.shape[:2], -1).sum(-1)
    terms, total = (weights > 0).sum(1), weights.sum(1)
    for n in stages:
        tested = (total > 0) & (total * (1 - n / site.terms) * gain_ratio >= n)
        if tested.any():
            planned.append(Stage(n, channels, None, tested, 2 * n * total / site.terms))
    return Plan(tuple(planned), terms, 2 * total, weights=weights, by_input=True)


def _masked(site: Site, mask: Tensor, stages: Sequence[int], gain_ratio: float, order: Tensor | None) -> Plan:
    weights = mask.reshape(*mask.shape[:2], -1).sum(-1)  # weights left in each term (outputs, N)
    terms, total = (weights > 0).sum(1), weights.sum(1)
    # Position of each term in its neuron's order: terms without weights last; fewest weights first, unless order is
    # given.
    sizes = torch.where(weights > 0, weights if order is None else 0, weights.max() + 1)
    if order is None:
        own = site.order()
        order = torch.arange(site.terms) if own is None else own
    order = order.expand(len(weights), -1)
    position = order.gather(1, sizes.gather(1, order).argsort(dim=1, stable=True)).argsort(dim=1)

    planned, start = [], 0
    for n in stages:
        evaluated = (weights * (position < n)).sum(1)
        tested = (terms >= n) & ((total - evaluated) * gain_ratio >= n)
        planned.append(Stage(n, *_between(position, start, n, weights > 0), tested, 2 * evaluated))
        start = n
    last = max((index for index, stage in enumerate(planned, 1) if stage.tests_any), default=0)
    return Plan(tuple(planned[:last]), terms, 2 * total)
