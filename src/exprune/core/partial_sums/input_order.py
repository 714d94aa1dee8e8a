"""Partial sums in the order of each input: every row starts with its largest terms (docs/method.md, section 8).

A row holds the inputs that the neurons of one position share: a row of a Linear's input, or a patch of a convolution's.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import LinearCall
from exprune.core.decisions.choice import Choice
from exprune.core.partial_sums.elementwise import per_row
from exprune.core.partial_sums.products import product
from exprune.core.partial_sums.terms import pad, sum_dtype

_NUMBERS = 2**23  # numbers in patches at a time, to limit memory
_GATHERED = 4  # cost of a term whose weights are gathered for its row, relative to a term in a product


@dataclass(frozen=True)
class Columns:
    """A layer's weights, arranged as its rows need them.

    Attributes:
        weight: Weights times the chain's scale (K * N, outputs), the kernel's positions outermost.
        norms: The squared norm of each term's weights over all outputs, without the scale (N,), float32.
    """

    weight: Tensor
    norms: Tensor

    @classmethod
    def of(cls, call: LinearCall, scale: Tensor | None) -> "Columns":
        weight = call.weight.detach().to(sum_dtype(call))
        weight = weight.flatten(2) if call.is_conv else weight[..., None]
        norms = weight.square().sum((0, 2)).float()
        if scale is not None:
            weight = weight * scale.reshape(-1, 1, 1)
        return cls(weight.permute(2, 1, 0).flatten(0, 1).contiguous(), norms)

    def rank(self, rows: Tensor, stages: Sequence[int]) -> "Ranked":
        """Rank the terms of rows (R, K, N) by patch norm times weight norm; ties keep their order."""
        return Ranked(self, rows, energies(rows).mul_(self.norms), tuple(stages))

    def choose(self, rows: Tensor, choice: Choice) -> "Chosen":
        """Select the terms of rows (R, K, N) by a choice."""
        energy = energies(rows)
        return Chosen(self, rows, energy, kept=choice.keep(energy, self.norms), basis=choice.basis)

    @cached_property
    def of_outputs(self) -> Tensor:
        """The weights (K * N, outputs), in the layout that `product` runs fastest with."""
        return self.weight.T.contiguous().T


@dataclass(frozen=True)
class Ranked:
    """Rows (R, K, N) whose terms are ranked by ``energy`` (R, N), float32, and summed up to each of ``stages``."""

    columns: Columns
    rows: Tensor
    energy: Tensor
    stages: tuple[int, ...] = ()

    def sums(self) -> Iterator[Tensor]:
        """Yield after each stage the sum of each neuron's first n terms (R, outputs)."""
        so_far, before = None, 0
        for n in self.stages:
            if _GATHERED * (n - before) <= self.energy.shape[1]:
                added = self._sum_of(before, n)
                so_far = added if so_far is None else added.add_(so_far)
            else:
                so_far = self._product(self._first(n))
            yield so_far
            before = n

    def _sum_of(self, start: int, end: int) -> Tensor:
        """The sum of each neuron's terms of ranks start to end. The weight columns are gathered for each row."""
        rows, kernel, terms = self.rows.shape
        places = self._places[:, None, start:end].expand(rows, kernel, end - start)
        index = places + torch.arange(0, kernel * terms, terms, device=places.device)[:, None]
        values = self.rows.gather(2, places).flatten(1)
        return F.embedding_bag(index.flatten(1), self.columns.weight, mode="sum", per_sample_weights=values)

    def _product(self, first: Tensor) -> Tensor:
        """The sum of each neuron's terms where ``first`` (R, N) is 1, as one product over all terms."""
        masked = torch.mul(self.rows, first[:, None], out=self._room)
        return product(masked.flatten(1), self.columns.of_outputs)

    @cached_property
    def _room(self) -> Tensor:  # allocating memory for each stage takes longer than the product
        return torch.empty_like(self.rows)

    def firsts(self) -> Iterator[Tensor]:
        """Yield after each stage which terms are among the first n: 1 or 0 (R, N). The next stage overwrites it."""
        return map(self._first, self.stages)

    def _first(self, n: int) -> Tensor:
        return torch.lt(self._ranks, n, out=self._mask)

    @cached_property
    def _mask(self) -> Tensor:
        return torch.empty_like(self._ranks)

    def counts(self) -> Iterator[int | Tensor]:
        """Yield after each stage the number of evaluated terms: one number, or one per row (R, 1)."""
        return iter(self.stages)

    @cached_property
    def rest(self) -> Tensor:
        """The norm of the remaining terms after each stage, ``sqrt(sum of the energies)`` (R, stages).

        It is 0 if nothing remains, or if the norm is `undefined`.
        """
        bounds = [*self.stages, self.energy.shape[1]]
        parts = [self._largest[:, a:b].sum(1) for a, b in itertools.pairwise(bounds)]
        return _norms(torch.stack(parts, 1).flip(1).cumsum(1).flip(1)).to(self.rows.dtype)

    @cached_property
    def norm(self) -> Tensor:
        """The norm of all terms (R, 1); 0 if it is `undefined`."""
        return _norms(self._total).to(self.rows.dtype)

    @cached_property
    def undefined(self) -> Tensor | None:
        """Rows without a norm, because a value is NaN, infinite or too large to be squared (R, 1), bool.

        None if all rows have one. This is only checked on a CPU, where it does not wait for a device.
        """
        undefined = ~self._total.isfinite()
        return None if undefined.device.type == "cpu" and not undefined.any() else undefined

    @cached_property
    def _total(self) -> Tensor:
        return self.energy.sum(1, keepdim=True)

    @cached_property
    def nonzero(self) -> Tensor:
        """The terms that are not exactly zero (R, N), bool. They are ranked first."""
        return self.energy != 0  # also true for NaN

    @cached_property
    def _sorted(self) -> Tensor:
        """The sorted keys of the terms (R, N).

        A key consists of the inverted bits of the energy, whose order is that of the energies, and of the term's index.
        So the largest energy comes first, and of equal ones the first. NaN comes before all numbers.
        """
        bits = self.energy.view(torch.int32).long()
        keys = bits.neg_().add_(_MOST).bitwise_left_shift_(32)
        keys.bitwise_or_(torch.arange(keys.shape[1], device=keys.device))
        if keys.device.type == "cpu":
            try:
                array = keys.numpy()
            except RuntimeError:  # torch was installed without numpy
                return keys.sort(dim=1).values
            array.sort(axis=1)  # four times as fast as torch's sort
            return keys
        return keys.sort(dim=1).values

    @cached_property
    def _ranks(self) -> Tensor:
        """The rank of each term (R, N), in the dtype of the rows, which torch compares faster."""
        ranks = torch.arange(self._sorted.shape[1], dtype=self.rows.dtype, device=self.rows.device)
        return torch.empty_like(self._places, dtype=ranks.dtype).scatter_(1, self._places, ranks.expand_as(self.energy))

    @cached_property
    def _places(self) -> Tensor:
        """The indices of the terms, the largest first (R, N)."""
        return self._sorted & _PLACE

    @cached_property
    def _largest(self) -> Tensor:
        """The energies, the largest first (R, N)."""
        return (_MOST - (self._sorted >> 32)).int().view(torch.float32)


_MOST, _PLACE = 2**31 - 1, 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Chosen(Ranked):
    """Rows whose ``kept`` terms (R, N), bool, are summed in a single stage; the others go through ``basis``."""

    kept: Tensor
    basis: Tensor | None = None

    def sums(self) -> Iterator[Tensor]:
        evaluated = self._product(next(self.firsts()))
        if self.basis is not None:
            basis = self.basis.to(self.rows)
            left = torch.where(self.kept[:, None], 0, self.rows).flatten(1)
            evaluated = evaluated + left @ basis @ (basis.T @ self.columns.weight)
        yield evaluated

    def firsts(self) -> Iterator[Tensor]:
        yield self._evaluated.to(self.rows.dtype)

    def counts(self) -> Iterator[int | Tensor]:
        yield per_row(self._evaluated)

    @cached_property
    def rest(self) -> Tensor:
        left = self.energy.masked_fill(self.kept, 0)
        return _norms(left.sum(1, keepdim=True)).to(self.rows.dtype)

    @cached_property
    def _evaluated(self) -> Tensor:
        return self.kept & self.nonzero


def _norms(energies: Tensor) -> Tensor:
    """Square roots of energies. Undefined ones become 0, because tables are indexed by norms."""
    return energies.sqrt().nan_to_num_(nan=0, posinf=0)


def energies(rows: Tensor) -> Tensor:
    """The squared norm of each term's patch (R, N), float32, of rows (R, K, N)."""
    return rows.square().sum(1).float()


def rows_of(call: LinearCall, x: Tensor, step: int = 1) -> Tensor:
    """The rows (R, K, N) of a call's input ``x``, (inputs, N, *space) or (R, N), at every ``step``-th position."""
    x = x.to(sum_dtype(call))
    if not call.is_conv:
        return x.reshape(-1, 1, x.shape[-1])
    dims = call.spatial_dims
    x = pad(x, call).movedim(call.channel_dim, -1).contiguous()  # so that runs of channels are copied below
    for dim, (size, stride, apart) in enumerate(
        zip(call.weight.shape[2:], call.stride, call.dilation, strict=True), start=1
    ):
        x = x.unfold(dim, apart * (size - 1) + 1, stride)[..., ::apart]
    x = x.movedim(1 + dims, -1)  # (inputs, *space, *kernel, N)
    space = x.shape[1 : 1 + dims]
    if step > 1:
        at = torch.arange(0, space.numel(), step, device=x.device)
        index: Any = (slice(None), *torch.unravel_index(at, space))
        x = x[index]
    return x.reshape(-1, call.weight.shape[2:].numel(), x.shape[-1])


def inputs_at_once(call: LinearCall, out: Tensor) -> int:
    """The number of inputs of a batch (rows of a Linear) to process at a time, so that they fit into memory."""
    each = out[:1].numel() // call.weight.shape[0] * call.weight[0].numel()
    return max(1, _NUMBERS // max(each, 1))


def ranking_flops(call: LinearCall, stages: int) -> int:
    """FLOPs of ranking one row: the norms of its terms, N log2 N comparisons, and the rest norm after each stage."""
    return call.terms * (_norm_flops(call) + 1 + math.ceil(math.log2(max(call.terms, 2))) + 1) + stages


def choosing_flops(call: LinearCall, choice: Choice) -> int:
    """FLOPs of choosing the terms of one row: those of the rule, and the norms of a convolution's patches."""
    return choice.flops + (call.terms * _norm_flops(call) if call.is_conv else 0)


def _norm_flops(call: LinearCall) -> int:
    """FLOPs of the norm of one term.

    The squares of a convolution's patches are summed along one dimension after another, and shared between patches.
    """
    kernel = call.weight.shape[2:]
    norm = 2 * kernel.numel()
    if call.is_conv:
        norm = min(norm, math.prod(call.stride) * (1 + sum(size - 1 for size in kernel)))
    return norm
