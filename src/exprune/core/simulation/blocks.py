"""Split a layer's chain and output into blocks of rows."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from exprune.core.partial_sums.parts import some_rows
from exprune.core.tracing.chain import Chain

# Outputs tested at a time. On a CPU, each core's share is small enough to stay in its caches.
_CHUNK = 2**19


def as_rows(chain: Chain, out: Tensor) -> tuple[Chain, Tensor]:
    """The chain and output of a Linear layer with all rows in one dimension; any number of rows can form a chunk."""
    if chain.call.is_conv:
        return chain, out

    def rows(values: Tensor) -> Tensor:
        return values.reshape(-1, values.shape[-1])

    residual = chain.residual
    if residual is not None and residual.dim() > 1:
        residual = rows(residual.expand_as(out))
    call = replace(chain.call, input=rows(chain.call.input), sums=tuple(map(rows, chain.call.sums)))
    return replace(chain, call=call, residual=residual), rows(out)


def chunks(chain: Chain, out: Tensor, most: int | None = None) -> Iterator[tuple[Chain, slice]]:
    """The chain in chunks of rows (for a convolution, inputs of the batch), at most ``most`` per chunk."""
    if out.dim() == -chain.call.channel_dim:  # no batch
        yield chain, slice(None)
        return
    for rows in some_rows(out, _CHUNK, most):
        residual = chain.residual
        if residual is not None and residual.dim() == out.dim() and residual.shape[0] == len(out):
            residual = residual[rows]
        sums = tuple(so_far[rows] for so_far in chain.call.sums)
        call = replace(chain.call, input=chain.call.input[rows], sums=sums)
        yield replace(chain, call=call, residual=residual), rows


def same_memory(values: Tensor, given: Tensor) -> bool:
    """Whether writing to ``values`` writes to ``given``. For subclasses of Tensor this is unknown, so False."""
    return type(values) is type(given) is Tensor and values.data_ptr() == given.data_ptr()


def data_mask(mask: Tensor, chain: Chain, out: Tensor, rows: slice) -> Tensor | None:
    """The mask of data rows for some rows of the output, shaped to broadcast with ``out``; None if all are data."""
    dims = -chain.call.channel_dim
    leading = out.shape[: out.dim() - dims]
    mask = mask.reshape(-1, *leading[1:])[rows]
    if mask.all():
        return None
    return mask.to(out.device, torch.bool).view(*leading, *(1,) * dims)
