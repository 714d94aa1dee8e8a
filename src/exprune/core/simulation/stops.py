"""Track which outputs of a layer stop, and count them after each stage."""

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
    """The tests of one call of a layer. Blocks of rows are tested one after the other, each at all stages.

    Args:
        heuristic: The heuristic of the run.
        of: The site and its plan.
        tau: The site's setting.
        table: Its decision table, if the heuristic has one.
        choice: Its choice of inputs, if the heuristic has one.
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
        self._expected: Tensor | None = None  # of the block: the expected value of each neuron when it stopped
        self._masks = Masks(
            0, torch.empty(0)
        )  # of the block: what has stopped after each stage; what is positive; what was stopped wrongly

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
        """Test a block after a stage.

        Most arguments are those of `Prefix`. ``chain`` holds the block's rows only. ``ranked`` holds the rows of a site
        in the order of each input.
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
        """Yield masks of neurons that must not stop, because a known value is NaN or infinite.

        In the order of each input, all undefined terms are known at once. Before a ReLU the comparisons suffice,
        because they are false for NaN.
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
        """The block's outputs that have stopped at any stage. The next block overwrites the tensor."""
        return self._masks[len(self.plan.stages) - 1]

    def so_far(self) -> Sequence[Tensor]:
        """The block's outputs that have stopped, after each stage in turn."""
        return [self._masks[index] for index in range(len(self.plan.stages))]

    def write(self, out: Tensor, activation: Activation | None) -> None:
        """Write the outputs of stopped neurons into ``out``, the output of ``activation``."""
        if self._expected is None:
            write_zeros(out, self.stopped())
            return
        value = self._expected
        if activation is not None:
            value = activation(value)
        if not self.site.before_relu:
            value = value.masked_fill(self._zeroed(), 0)  # an activation of -inf may be undefined
        out.copy_(torch.where(self.stopped(), value.to(out.dtype), out))

    def zeroed(self) -> Tensor:
        """The block's stopped outputs that are exactly 0."""
        if self._expected is None:
            return self.stopped()
        return self.stopped() & self._zeroed()

    def zeros(self, data: Tensor | None) -> Tensor | None:
        """The number of `zeroed` outputs in rows that count; None means that all stopped outputs are 0."""
        if self._expected is None:
            return None
        return (self.zeroed() if data is None else self.zeroed() & data).sum()

    def _zeroed(self) -> Tensor:
        """Which neurons of the block would output exactly 0 if they stop."""
        assert self._expected is not None
        if self.site.before_relu:
            return self._expected <= 0
        return self._expected == -math.inf

    def counts(self, activations: Tensor, data: Tensor | None) -> Tensor:
        """Count a block's outputs: stopped after each stage, positive, and wrongly stopped (stages + 2,).

        If costs differ by output channel, the counts are per channel (stages + 2, outputs).

        Args:
            activations: The outputs of the activation.
            data: False for rows that do not count; broadcasts with the block. None means that all rows count.
        """
        positive, wrong = self._masks[-2], self._masks[-1]
        if self.site.before_relu:  # any nonzero output counts as positive
            positive.copy_(activations)
        elif self.site.before_activation:
            assert self.site.activation is not None
            positive.copy_(activations > float(self.site.activation(torch.zeros(1))))
        else:
            positive.fill_(True)  # without an activation no output counts as negative
        torch.bitwise_and(positive, self.zeroed(), out=wrong)  # outputs replaced by their expectation are not wrong
        if data is None and not isinstance(self.plan.terms, Tensor):
            return self._masks.counts()
        masks = list(self._masks) if data is None else [mask & data for mask in self._masks]
        if not isinstance(self.plan.terms, Tensor):
            return torch.stack([mask.sum() for mask in masks])
        return torch.stack([mask.movedim(-1 - self._dims, -1).flatten(0, -2).sum(0) for mask in masks])

    def _per_output(self, values: Tensor, like: Tensor) -> Tensor:
        """One value per output channel, shaped to broadcast over the block."""
        return per_channel(values.to(like.device), self._dims)
