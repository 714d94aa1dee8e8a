"""Apply a decision table to some rows after a stage (docs/method.md, section 8)."""

import math

import torch
from torch import Tensor

from exprune.core.decisions.prefix import Prefix
from exprune.core.decisions.table import DecisionTable, width_places
from exprune.core.errors import SettingError
from exprune.core.partial_sums.elementwise import below


def stop(seen: Prefix) -> Tensor:
    """Which neurons stop: bool, of the shape of the sums."""
    table = _table(seen)
    if table.usual is None:
        return _in_shared_order(table, seen)
    if table.narrow is not None:
        width = _width(table, seen)
        if seen.gate is not None and table.gate is not None:
            width = width * (seen.gate.abs() / table.gate)
        return below(width.expand_as(seen.part), table.narrow[seen.stage])
    assert table.below is not None  # it is set unless `narrow` is
    expected, place = _expected(table, seen), width_places(_width(table, seen)).flatten()
    if table.predicts:
        seen.kept["expected"] = seen, expected, place  # reused by the prediction
    return below(expected, table.below[:, seen.stage].index_select(0, place))


def prediction(seen: Prefix) -> Tensor:
    """The expected pre-activation of each neuron; -inf where the output must be 0."""
    table = _table(seen)
    expected: Tensor
    of, expected, place = seen.kept.pop("expected", (None, None, None))
    if of is not seen:
        expected = _expected(table, seen)
    if table.zero_below is None:
        return expected
    zero_below = table.zero_below[:, seen.stage]
    if table.usual is None:
        zero_below = _per_output(zero_below[0], seen)
    else:
        place = width_places(_width(table, seen)).flatten() if place is None else place
        zero_below = zero_below.index_select(0, place)
    return expected.masked_fill_(expected < zero_below, -math.inf)


def expected(seen: Prefix) -> Tensor:
    """The expected pre-activation of each neuron, of the shape of the sums."""
    return _expected(_table(seen), seen)


def bounds(table: DecisionTable, bias: Tensor) -> Tensor:
    """The bound on the partial sum below which a neuron stops (stages, outputs).

    This is for sites without a residual, in an order that all inputs share.

    Args:
        table: The site's decision table.
        bias: What is added to the terms (outputs,).
    """
    assert table.below is not None  # it is set in a shared order
    slope, bound = _positive(table.slope, table.below[0] - table.offset)
    return ((bound - bias) / slope).float()


def _table(seen: Prefix) -> DecisionTable:
    if seen.table is None:
        raise SettingError(f"{seen.site.name}: its heuristic implements neither stop nor solve")
    return seen.table.like(seen.part)


def _in_shared_order(table: DecisionTable, seen: Prefix) -> Tensor:
    if seen.stage not in seen.kept:
        seen.kept[seen.stage] = _folded(table, seen)
    slope, bound = seen.kept[seen.stage]
    if slope is None:
        return below(seen.part, bound)
    r = torch.as_tensor(seen.r, dtype=seen.part.dtype, device=seen.part.device)
    return below(torch.addcmul(r, seen.part, slope), bound)


def _folded(table: DecisionTable, seen: Prefix) -> tuple[Tensor | None, Tensor]:
    """Slope and bound of the test ``slope * part + r < bound`` of a stage; slope None if it is ``part < bound``."""
    assert table.below is not None  # it is set in a shared order
    slope, bound = _positive(table.slope[seen.stage], table.below[0, seen.stage] - table.offset[seen.stage])
    slope, bound = _per_output(slope, seen), _per_output(bound, seen)
    if seen.scale is not None:
        slope = slope * seen.scale
    if seen.site.residual or slope.min() <= 0:
        return slope, bound
    return None, (bound - seen.r) / slope


def _positive(slope: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes that are safe to divide by. If the bound is -inf, nothing stops and any slope will do."""
    return torch.where(bound == -math.inf, 1.0, slope), bound


def _expected(table: DecisionTable, seen: Prefix) -> Tensor:
    slope, offset = table.slope[seen.stage], table.offset[seen.stage]
    if table.usual is None:
        return (seen.s * _per_output(slope, seen)).add_(_per_output(offset, seen)).add_(seen.r)
    assert seen.rest is not None and seen.norm is not None  # they are set in the order of each input
    share = (seen.rest / seen.norm.clamp(min=torch.finfo(seen.norm.dtype).tiny)).clamp_(0, 1)
    return torch.addcmul(seen.s, seen.s, share * slope).addcmul_(seen.rest, offset).add_(seen.r)


def _width(table: DecisionTable, seen: Prefix) -> Tensor:
    """The width of each row (rows, 1): the norm of its remaining terms in units of the usual one."""
    assert table.usual is not None and seen.rest is not None  # they are set in the order of each input
    return seen.rest / table.usual[seen.stage]


def _per_output(values: Tensor, seen: Prefix) -> Tensor:
    """One value per output, shaped to broadcast with the sums."""
    return values.view(-1, *(1,) * seen.spatial_dims)
