"""Which rows of a layer's output are data."""

from torch import Tensor

from exprune.core.discovery.chain import Chain
from exprune.core.errors import SettingError


def check_rows(rows: Tensor, chain: Chain, out: Tensor) -> None:
    """Raise a SettingError unless ``rows`` has one value for each of the leading dimensions of the chain's output."""
    leading = out.shape[: out.dim() + chain.call.channel_dim].numel()
    if rows.numel() != leading:
        raise SettingError(f"rows: {rows.numel()} values, but {chain.name} has {leading} rows in this batch")
