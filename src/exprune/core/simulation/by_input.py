"""Test a layer in the order of each input: row by row, or position by position for a convolution."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from exprune.core.accounting.flops import SiteFlops
from exprune.core.accounting.plan import Plan
from exprune.core.partial_sums.elementwise import per_row
from exprune.core.partial_sums.input_order import Columns, Ranked, choosing_flops, ranking_flops, rows_of
from exprune.core.partial_sums.products import product
from exprune.core.simulation.blocks import same_memory
from exprune.core.simulation.stops import Stops
from exprune.core.tracing.chain import Chain


def prune_by_input(
    stops: Stops,
    of: SiteFlops,
    chain: Chain,
    out: Tensor,
    columns: Columns,
    data: Tensor | None,
    full: Tensor | None,
    gate: Tensor | None = None,
) -> Ranked:
    """Test some inputs of a layer at every stage, count them, and write ``out``.

    ``data``, ``full`` and ``gate`` are those of `Prefix` and broadcast with ``out``.

    Returns:
        The ranked rows.
    """
    dim = chain.call.channel_dim
    given, out = out, _matrix(out, out, dim)
    data, full = (None if values is None else _matrix(values, given, dim) for values in (data, full))
    beside = replace(
        chain,
        shift=chain.shift.flatten() if isinstance(chain.shift, Tensor) else chain.shift,
        residual=None if chain.residual is None else _matrix(chain.residual, given, dim),
    )
    patches, choice = rows_of(chain.call, chain.call.input), stops.choice
    if choice is None:
        ranked, overhead = columns.rank(patches, of.stages), ranking_flops(chain.call, len(of.stages))
    else:
        ranked, overhead = columns.choose(patches, choice), choosing_flops(chain.call, choice)
    for index, so_far in enumerate(ranked.sums()):
        stops.test(index, beside, so_far, None, None, data, full, ranked, gate)
    rows = len(out) if data is None else int(data.sum())
    of.add(rows * out.shape[1], stops.counts(out, data), stops.zeros(data))
    _count(of, stops, ranked, data, rows * overhead)
    stops.write(out, chain.activation)
    if not same_memory(out, given):
        moved = given.movedim(dim, -1)
        moved.copy_(out.view(moved.shape))
    return ranked


def weights_evaluated(ranked: Ranked, plan: Plan, weights_per_term: int) -> tuple[Tensor, Iterator[int | Tensor]]:
    """The number of weights of terms that are not exactly zero, and after each stage of its first terms, zero or not.

    Both are per row (rows, 1), and under a static mask per neuron (rows, outputs). They are whole numbers.
    """
    if plan.weights is None:
        nonzero = per_row(ranked.nonzero) * weights_per_term
        return nonzero, (n * weights_per_term for n in ranked.counts())
    weights = plan.weights.to(ranked.rows).T
    return product(ranked.nonzero.to(weights), weights), (product(first, weights) for first in ranked.firsts())


def _matrix(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """``values`` as (rows, channels or 1). They broadcast with ``like``, whose channels are at dimension ``dim``."""
    channels = values.shape[dim] if values.dim() >= -dim else 1
    shape = (*like.shape[:dim], channels, *like.shape[dim + like.dim() + 1 :])
    return values.expand(shape).movedim(dim, -1).flatten(0, -2)


def _count(of: SiteFlops, stops: Stops, ranked: Ranked, data: Tensor | None, ranking: int) -> None:
    """Count the weights of terms that are not exactly zero, and those of them that were not evaluated."""
    plan = of.plan
    assert of.by_input is not None  # every site in this order has it
    nonzero, evaluated = weights_evaluated(ranked, plan, of.site.weights_per_term)
    # Without a mask every neuron has all terms, so the row determines what a stop saves.
    neurons, dtype = (stops.stopped().shape[1], torch.int64) if plan.weights is None else (1, torch.float64)
    left = torch.zeros((), dtype=dtype, device=ranked.norm.device)
    before: int | Tensor = 0
    for stopped, so_far in zip(stops.so_far(), evaluated, strict=True):
        counted = stopped if data is None else stopped & data
        total = per_row(counted) if plan.weights is None else counted.to(nonzero)
        left += ((total - before) * (nonzero - so_far).clamp(min=0)).sum(dtype=dtype)
        before = total
    nonzero = nonzero if data is None else nonzero * data
    of.by_input.add(nonzero.sum(dtype=dtype).long() * neurons, left.long(), ranking)
