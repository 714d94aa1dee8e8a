"""Which of a layer's outputs stop, and how many after each stage."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.flops import SiteFlops
from exprune.core.calls.activations import Activation
from exprune.core.calls.layers import per_channel
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.prefix import Prefix
from exprune.core.decisions.table import DecisionTable
from exprune.core.heuristics.heuristic import Heuristic
from exprune.core.partial_sums.elementwise import Masks, write_zeros
from exprune.core.partial_sums.input_order import Ranked
from exprune.core.tracing.chain import Chain


class Stops:
    """The tests of one call of a layer, of one block of its rows after the other: each block stage by stage.

    Args:
        of: the site and its plan.
        tau: the site's knob.
        table: what the heuristic has solved for it.
        choice: which inputs it evaluates, where the heuristic says that.
    """

    def __init__(
        self,
        heuristic: Heuristic,
        of: SiteFlops,
        tau: float | None,
        table: DecisionTable | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.heuristic, self.site, self.plan, self.tau, self.table = heuristic, of.site, of.plan, tau, table
        self.choice = choice
        self._dims = 0 if self.plan.by_input else self.site.spatial_dims
        self._kept: dict[Any, Any] = {}
        self._expected: Tensor | None = None  # of the block: what was expected of a neuron when it stopped
        self._masks = Masks(
            0, torch.empty(0)
        )  # of the block: what has stopped after each stage, the positive, the wrong

    def test(
        self,
        index: int,
        chain: Chain,
        part: Tensor,
        scale: Tensor | None,
        q: Tensor | None = None,
        data: Tensor | None = None,
        full: Tensor | None = None,
        ranked: Ranked | None = None,
        gate: Tensor | None = None,
    ) -> None:
        """Test a block after a stage. What is known of it is as of :class:`Prefix`; ``chain`` is of its rows.

        ``ranked`` holds the rows of a site in the order of each input.
        """
        stage, total = self.plan.stages[index], self.plan.terms
        if isinstance(total, Tensor):
            total = self._per_output(total.clamp(min=1), part)
        r, plan = chain.beside, self.plan
        of_rows: dict[str, Any] = {}
        if ranked is not None:
            rest, weight = ranked.rest[:, index : index + 1], ranked.columns.weight
            of_rows = {"rest": rest, "norm": ranked.norm, "weight": weight, "gate": gate}
        known = part, scale, q, r, plan, data, full, self._kept
        seen = Prefix(self.site, index, stage.n, total, self.tau, *known, **of_rows, table=self.table)
        now = self.heuristic.stop(seen)
        for undefined in self._undefined(part, r, ranked):
            now = now & ~undefined
        if stage.tested is not None:
            now = now & self._per_output(stage.tested, part)
        if self._masks.shape != part.shape:
            self._masks = Masks(len(plan.stages) + 2, part)
        if self.heuristic.predicts:
            z = self.heuristic.prediction(seen)
            self._expected = (
                z if self._expected is None or not index else torch.where(self._masks[index - 1], self._expected, z)
            )
        if index:
            torch.bitwise_or(self._masks[index - 1], now, out=self._masks[index])
        else:
            self._masks[0].copy_(now)

    def _undefined(self, part: Tensor, r: Tensor | float, ranked: Ranked | None) -> Iterator[Tensor]:
        """Where nothing may stop, for what is known is no number: there the output is the model's own.

        In the order of each input every term that is none is known at once. A ReLU makes the same of any number, so
        that the comparisons, which NaN fails, are enough.
        """
        if ranked is not None and ranked.undefined is not None:
            yield ranked.undefined
        if not self.heuristic.predicts or self.site.before_relu:
            return
        known = [part] if ranked is None else []
        for values in (*known, r) if self.site.residual else known:
            if isinstance(values, Tensor) and not (values.device.type == "cpu" and values.sum().isfinite()):
                yield ~values.isfinite()

    def stopped(self) -> Tensor:
        """The block's outputs that have stopped at any stage; the next block overwrites it."""
        return self._masks[len(self.plan.stages) - 1]

    def so_far(self) -> Sequence[Tensor]:
        """The block's outputs that have stopped, after each stage."""
        return [self._masks[index] for index in range(len(self.plan.stages))]

    def write(self, out: Tensor, activation: Activation | None) -> None:
        """Write what the stopped outputs of a block are, behind that activation, of which ``out`` is the output."""
        if self._expected is None:
            write_zeros(out, self.stopped())
            return
        value = self._expected
        if activation is not None:
            value = activation(value)
        if not self.site.before_relu:
            value = value.masked_fill(self._zeroed(), 0)  # of -inf an activation is as often undefined
        out.copy_(torch.where(self.stopped(), value.to(out.dtype), out))

    def zeroed(self) -> Tensor:
        """The block's outputs that stop with exactly 0."""
        if self._expected is None:
            return self.stopped()
        return self.stopped() & self._zeroed()

    def zeros(self, data: Tensor | None) -> Tensor | None:
        """How many :meth:`zeroed` are, of rows that count; None: all that stop."""
        if self._expected is None:
            return None
        return (self.zeroed() if data is None else self.zeroed() & data).sum()

    def _zeroed(self) -> Tensor:
        """Where a neuron of the block outputs 0 if it stops, whatever was expected of it else."""
        assert self._expected is not None
        if self.site.before_relu:
            return self._expected <= 0
        return self._expected == -math.inf

    def counts(self, activations: Tensor, data: Tensor | None) -> Tensor:
        """Of the block how many outputs have stopped after each stage, how many are positive, and both: (stages + 2,).

        Where costs differ by output channel, of each: (stages + 2, outputs).

        Args:
            activations: what its activation makes of it.
            data: rows that do not count are False; broadcasts with the block; None: all count.
        """
        positive, wrong = self._masks[-2], self._masks[-1]
        if self.site.before_relu:  # the output as it is: not 0
            positive.copy_(activations)
        elif self.site.before_activation:
            assert self.site.activation is not None
            positive.copy_(activations > float(self.site.activation(torch.zeros(1))))
        else:
            positive.fill_(True)  # nothing is negative that no activation tells from 0
        torch.bitwise_and(positive, self.zeroed(), out=wrong)  # what outputs its expected value is not wrong
        if data is None and not isinstance(self.plan.terms, Tensor):
            return self._masks.counts()
        masks = list(self._masks) if data is None else [mask & data for mask in self._masks]
        if not isinstance(self.plan.terms, Tensor):
            return torch.stack([mask.sum() for mask in masks])
        return torch.stack([mask.movedim(-1 - self._dims, -1).flatten(0, -2).sum(0) for mask in masks])

    def _per_output(self, values: Tensor, like: Tensor) -> Tensor:
        """One value per output channel, shaped to broadcast over the block."""
        return per_channel(values.to(like.device), self._dims)
