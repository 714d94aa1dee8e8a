"""Which terms of a site's neurons are evaluated before each test, and what they cost (docs/method.md, section 3)."""

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
        n: the terms of a neuron that are evaluated before it.
        channels: the input channels that are evaluated since the stage before.
        keep: (outputs, channels) bool, which of them each output channel evaluates; None: all.
        tested: (outputs,) bool, the output channels that are tested; None: all.
        flops: FLOPs of one output's first n terms: one number, or one per output channel; of a masked site in the
            input's order what they are expected to be.
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
    """The stages of a site; none where testing it is of no use.

    Attributes:
        terms: N, the terms of a neuron: one number, or one per output channel.
        dense_flops: FLOPs of one output, likewise.
        rest: the input channels that no stage evaluates, where each is evaluated for all outputs at once; else None.
        weights: (outputs, N) of a site under a static mask, the weights left in each term; else None.
        by_input: whether the terms are evaluated in the order of each input; the stages' channels are all of them then.
    """

    stages: tuple[Stage, ...]
    terms: int | Tensor
    dense_flops: int | Tensor
    rest: slice | Tensor | None = None
    weights: Tensor | None = None
    by_input: bool = False


def ascending(stages: Sequence[int]) -> bool:
    """Whether there are stages, of at least 1 term, each longer than the one before."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in stages)
    return bool(stages) and whole and stages[0] >= 1 and all(a < b for a, b in itertools.pairwise(stages))


def checked(stages: Sequence[int]) -> tuple[int, ...]:
    """The stages, as ints.

    Raises:
        SettingError: they are not :func:`ascending`.
    """
    stages = plain_knob(stages)
    if not isinstance(stages, list) or not ascending(stages):
        raise SettingError(f"stages={stages}: whole numbers of terms, at least 1, each larger than the one before")
    return tuple(stages)


def make_plan(site: Site, stages: Sequence[int], gain_ratio: float, order: Tensor | str | None = None) -> Plan:
    """The terms in the given order, else the model's own; under a static mask else those with the fewest weights first.

    Args:
        stages: terms evaluated before each test, ascending.
        order: of all N terms, (N,) or one per neuron (outputs, N); or :data:`BY_INPUT`, where n terms are the first of
            all N, of which each neuron evaluates those that it has.
        gain_ratio: only where static pruning removed weights: an output channel is not tested after n terms
            where ``(its weights not yet evaluated) * gain_ratio < n``; infinite: it is, while weights are left.
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
    """The channels with a term (of those that are ``there``) at these positions of some neuron's order; whose it is."""
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
    weights = mask.reshape(*mask.shape[:2], -1).sum(-1)  # left in each term: (outputs, N)
    terms, total = (weights > 0).sum(1), weights.sum(1)
    # Position of each term in its neuron's order: those with no weights last; fewest weights first, else as given.
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
