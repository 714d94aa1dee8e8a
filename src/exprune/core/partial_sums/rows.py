"""Which rows of a layer's output are data."""

from torch import Tensor

from exprune.core.errors import SettingError
from exprune.core.tracing.chain import Chain


def check_rows(rows: Tensor, chain: Chain, out: Tensor) -> None:
    """Raise a SettingError unless ``rows`` has one value for each of the leading dimensions of the chain's output."""
    leading = out.shape[: out.dim() + chain.call.channel_dim].numel()
    if rows.numel() != leading:
        raise SettingError(f"rows: {rows.numel()} values, but {chain.name} has {leading} rows in this batch")


def data_rows(values: Tensor, dim: int, rows: Tensor | None) -> Tensor:
    """(rows, channels) of values with the channels at ``dim``: positions and inputs that are data.

    ``rows`` (bool) says which: over the leading dimensions of a Linear, the batch of a convolution; None: all.
    """
    values = values.movedim(dim, -1)
    values = values if values.dim() > 1 else values[None]
    if rows is None or rows.all():
        return values.flatten(0, -2)
    rows = rows.flatten().to(values.device)
    return values.flatten(0, -2)[rows] if dim == -1 else values[rows].flatten(0, -2)
