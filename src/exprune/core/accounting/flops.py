"""FLOPs spent and saved, per site and in total (docs/method.md, section 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.discovery.sites import Site


@dataclass
class SiteFlops:
    """Counts of one site over all passes of a run. Counts are of outputs, that is, of neurons for one input.

    Attributes:
        site: The site.
        plan: The terms evaluated before each test.
        overhead: FLOPs of each test.
        outputs: The number of outputs.
        pruned_at: Outputs stopped at each stage; under a static mask, per output channel.
        negative: Outputs whose true pre-activation is <= 0, which is all that an oracle would stop.
        wrong: Outputs that were set to 0 although their pre-activation is positive.
        zeros: Stopped outputs that are exactly 0.
        spares: FLOPs that one such zero saves in layers that are not pruned.
        row: FLOPs that zeros save in the layer that their outputs are multiplied with, if that layer is a site.
        by_input: Counts that depend on the rows, for a site in the order of each input; otherwise None.
    """

    site: Site
    plan: Plan
    overhead: tuple[int, ...]
    outputs: int = 0
    pruned_at: list[int | Tensor] = field(default_factory=list)
    negative: int | Tensor = 0
    wrong: int | Tensor = 0
    zeros: int | Tensor = 0
    spares: int = 0
    row: int | Tensor = 0
    by_input: "ByInput | None" = None

    def __post_init__(self) -> None:
        self.pruned_at = self.pruned_at or [0] * len(self.plan.stages)
        if self.plan.by_input:
            self.by_input = self.by_input or ByInput()

    def add(self, outputs: int, counts: Tensor, zeros: Tensor | None = None) -> None:
        """Add the counts of a call, without waiting for the device.

        Args:
            outputs: The number of outputs.
            counts: The result of ``Stops.counts``.
            zeros: The number of stopped outputs that are exactly 0; None means all that stopped.
        """
        so_far, positive, wrong = counts[:-2], counts[-2].sum(), counts[-1].sum()
        at = so_far.diff(dim=0, prepend=torch.zeros_like(so_far[:1]))
        self.outputs += outputs
        self.pruned_at = [count + more for count, more in zip(self.pruned_at, at, strict=True)]
        self.negative = self.negative + outputs - positive
        self.wrong = self.wrong + wrong
        self.zeros = self.zeros + (so_far[-1].sum() if zeros is None else zeros)

    def described(self) -> "SiteFlops":
        """A copy of the present counts, without the model, on the CPU."""
        of = self.by_input
        return replace(
            self,
            site=self.site.described(),
            pruned_at=[
                count.cpu() if isinstance(count, Tensor) and count.dim() else _total(count) for count in self.pruned_at
            ],
            negative=_total(self.negative),
            wrong=_total(self.wrong),
            zeros=_total(self.zeros),
            row=_total(self.row),
            by_input=None if of is None else ByInput(_total(of.nonzero), _total(of.left), of.ranking),
        )

    @property
    def stages(self) -> tuple[int, ...]:
        """The number of terms evaluated before each test."""
        return tuple(stage.n for stage in self.plan.stages)

    @property
    def stopped(self) -> list[int]:
        """The number of outputs that stopped at each stage."""
        return [_total(count) for count in self.pruned_at]

    @property
    def pruned(self) -> int:
        """The number of outputs that stopped at any stage."""
        return sum(self.stopped)

    @property
    def dense_flops(self) -> int:
        """FLOPs of all outputs without stopping."""
        return _total(self._outputs * self.plan.dense_flops)

    @property
    def pruned_flops(self) -> int:
        """FLOPs of evaluated terms and of tests."""
        alive: int | Tensor = self._outputs
        spent: int | Tensor = 0
        for stage, overhead, count in zip(self.plan.stages, self.overhead, self.pruned_at, strict=True):
            count = count.cpu() if isinstance(count, Tensor) else count
            tested = alive if stage.tested is None else alive * stage.tested
            spent = spent + tested * overhead + (0 if self.by_input else count * stage.flops)
            alive = alive - count
        if self.by_input is not None:
            evaluated = 2 * (_total(self.by_input.nonzero) - _total(self.by_input.left))
            return _total(spent) + evaluated + self.by_input.ranking
        return _total(spent + alive * self.plan.dense_flops)

    @property
    def spared(self) -> int:
        """FLOPs that zeros save in other layers: the columns that read them, and the rows they are multiplied with."""
        return _total(self.zeros) * self.spares + _total(self.row)

    @property
    def zero_terms(self) -> int:
        """FLOPs in `dense_flops` that multiply inputs that are exactly zero.

        They are only known for sites in the order of each input, whose `pruned_flops` does not contain them. For other
        sites this is 0.
        """
        return 0 if self.by_input is None else self.dense_flops - 2 * _total(self.by_input.nonzero)

    @property
    def _outputs(self) -> int:
        """The number of outputs; if costs are per output channel, that of one channel."""
        costs = self.plan.dense_flops
        return self.outputs // len(costs) if isinstance(costs, Tensor) else self.outputs


@dataclass
class ByInput:
    """Costs of a site in the order of each input, which depend on its rows. The unit is weights times outputs.

    Attributes:
        nonzero: Weights of terms that are not exactly zero, for all outputs. Other terms cost nothing.
        left: Those of them that were not evaluated, for outputs that stopped.
        ranking: FLOPs of ranking the rows' terms.
    """

    nonzero: int | Tensor = 0
    left: int | Tensor = 0
    ranking: int = 0

    def add(self, nonzero: Tensor, left: Tensor, ranking: int) -> None:
        """Add the counts of some rows, without waiting for the device."""
        self.nonzero, self.left = self.nonzero + nonzero, self.left + left
        self.ranking += ranking


def _total(count: int | Tensor) -> int:
    return int(count.sum()) if isinstance(count, Tensor) else count


@dataclass(frozen=True)
class FlopReport:
    """FLOPs of a model's passes, dense and pruned, as integers. It prints as a summary with one line per site.

    Copies and pickles hold the counts only; their sites have no model.

    Attributes:
        unpruned: What ``torch.utils.flop_counter.FlopCounterMode`` counts (linear algebra without bias, BatchNorm and
            activations), plus operators for which only this package has a formula (docs/method.md, section 5).
        sites: The counts of each pruned site, which add up to ``dense - pruned``.
        zeros: The part of ``unpruned`` that multiplies weights removed by static pruning.
        uncounted: The number of calls of each operator without a FLOP formula, by its name. They are not in the totals.
    """

    unpruned: int
    sites: tuple[SiteFlops, ...]
    zeros: int = 0
    uncounted: Mapping[str, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "sites": tuple(count.described() for count in self.sites)}

    @property
    def dense(self) -> int:
        """FLOPs without dynamic pruning, ``unpruned - zeros``."""
        return self.unpruned - self.zeros

    @property
    def pruned(self) -> int:
        """FLOPs with dynamic pruning, including the tests."""
        return self.dense - sum(site.dense_flops - site.pruned_flops + site.spared for site in self.sites)

    @property
    def saved(self) -> float:
        """The share of the dense FLOPs that was saved. It is negative if the tests cost more than they save."""
        return 1 - self.pruned / self.dense if self.dense else 0.0

    @property
    def dense_without_zero_terms(self) -> int | None:
        """Dense FLOPs of an engine that skips terms that are exactly zero; None if they are not counted.

        Zero terms are counted at sites in the order of each input, where `pruned` does not contain them
        (docs/method.md, section 8).
        """
        if not any(site.by_input for site in self.sites):
            return None
        # Before activations other than ReLU, all zeros come from stopped neurons.
        readers = {site.site.name for site in self.sites if site.by_input}
        ours = [(count.site, _total(count.zeros)) for count in self.sites if not count.site.rectified]
        made = sum(zeros * site.spared[site.reader] for site, zeros in ours if site.reader and site.reader in readers)
        return self.dense - sum(site.zero_terms for site in self.sites) + made

    def __str__(self) -> str:
        lines = [f"dense {self.dense:,} FLOPs, pruned {self.pruned:,}: {self.saved:.2%} saved"]
        for count in self.sites:
            outputs = max(count.outputs, 1)
            lines.append(
                f"  {count.site.name}: {count.pruned / outputs:.1%} of {count.outputs:,} neurons pruned, "
                f"{int(count.negative) / outputs:.1%} negative, {int(count.wrong) / outputs:.2%} wrongly pruned"
            )
        if self.uncounted:
            calls = ", ".join(f"{name} ({count} calls)" for name, count in self.uncounted.items())
            lines.append(f"  not counted, as no FLOP formula is known: {calls}")
        return "\n".join(lines)
