"""Masks of the rows of a layer's output that are data, as opposed to padding."""

import math
from collections.abc import Sequence

from torch import Tensor

from exprune.core.errors import SettingError
from exprune.core.tracing.chain import Chain


def rows_for(rows: Tensor | None, leading: Sequence[int]) -> Tensor | None:
    """The data mask for a layer with these leading dimensions, from a mask over (inputs, positions).

    In a layer with one row per input (after pooling), an input counts as data if any of its positions does.
    """
    if rows is None or rows.dim() != 2 or rows.numel() == math.prod(leading) or len(rows) != math.prod(leading):
        return rows
    return rows.any(1)


def check_rows(rows: Tensor, chain: Chain, out: Tensor) -> None:
    """Raise a SettingError unless ``rows`` has one value for each leading index of the chain's output."""
    leading = out.shape[: out.dim() + chain.call.channel_dim].numel()
    if rows.numel() != leading:
        raise SettingError(f"rows: {rows.numel()} values, but {chain.name} has {leading} rows in this batch")


def data_rows(values: Tensor, dim: int, rows: Tensor | None) -> Tensor:
    """The values at positions and inputs that are data (rows, channels); channels are at ``dim``.

    ``rows`` (bool) marks data: over the leading dimensions of a Linear, or the batch of a convolution. None means all.
    """
    rows = rows_for(rows, values.shape[: values.dim() + dim])
    values = values.movedim(dim, -1)
    values = values if values.dim() > 1 else values[None]
    if rows is None or rows.all():
        return values.flatten(0, -2)
    rows = rows.flatten().to(values.device)
    return values.flatten(0, -2)[rows] if dim == -1 else values[rows].flatten(0, -2)
