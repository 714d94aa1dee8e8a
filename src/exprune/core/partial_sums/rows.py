"""Which rows of a layer's output are data."""

import math
from collections.abc import Sequence

from torch import Tensor

from exprune.core.errors import SettingError
from exprune.core.tracing.chain import Chain


def rows_for(rows: Tensor | None, leading: Sequence[int]) -> Tensor | None:
    """Which rows of a layer with these leading dimensions are data, of what is known of (inputs, positions).

    Of a layer that has one row for each input (behind a pooling), those of inputs with any position that is data.
    """
    if rows is None or rows.dim() != 2 or rows.numel() == math.prod(leading) or len(rows) != math.prod(leading):
        return rows
    return rows.any(1)


def check_rows(rows: Tensor, chain: Chain, out: Tensor) -> None:
    """Raise a SettingError unless ``rows`` has one value for each of the leading dimensions of the chain's output."""
    leading = out.shape[: out.dim() + chain.call.channel_dim].numel()
    if rows.numel() != leading:
        raise SettingError(f"rows: {rows.numel()} values, but {chain.name} has {leading} rows in this batch")


def data_rows(values: Tensor, dim: int, rows: Tensor | None) -> Tensor:
    """(rows, channels) of values with the channels at ``dim``: positions and inputs that are data.

    ``rows`` (bool) says which: over the leading dimensions of a Linear, the batch of a convolution; None: all.
    """
    rows = rows_for(rows, values.shape[: values.dim() + dim])
    values = values.movedim(dim, -1)
    values = values if values.dim() > 1 else values[None]
    if rows is None or rows.all():
        return values.flatten(0, -2)
    rows = rows.flatten().to(values.device)
    return values.flatten(0, -2)[rows] if dim == -1 else values[rows].flatten(0, -2)
