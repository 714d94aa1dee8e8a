"""What was spent and what was saved, per site and in all (docs/method.md, section 5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.plan import Plan
from exprune.core.discovery.sites import Site


@dataclass
class SiteFlops:
    """Counts of one site over all passes of a run; every count is of outputs (neurons of one input).

    Attributes:
        plan: the terms evaluated before each test.
        overhead: FLOPs of each test.
        outputs: all outputs.
        pruned_at: those stopped at each stage; under a static mask per output channel.
        negative: those whose true pre-activation is <= 0, all that an oracle would stop.
        wrong: those stopped with 0 although their pre-activation is positive.
        zeros: those stopped that output exactly 0.
        spares: FLOPs that one of those spares in layers that are no sites.
        row: FLOPs that they spare in the layer that their outputs are multiplied with, where that is a site.
        by_input: of a site whose terms are evaluated in the order of each input what only its rows tell; else None.
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
        """Count some outputs of a call, by ``Stops.counts`` of the simulation. Nothing waits for the device.

        ``zeros``: how many output exactly 0 for having stopped; None: all that have stopped.
        """
        so_far, positive, wrong = counts[:-2], counts[-2].sum(), counts[-1].sum()
        at = so_far.diff(dim=0, prepend=torch.zeros_like(so_far[:1]))
        self.outputs += outputs
        self.pruned_at = [count + more for count, more in zip(self.pruned_at, at, strict=True)]
        self.negative = self.negative + outputs - positive
        self.wrong = self.wrong + wrong
        self.zeros = self.zeros + (so_far[-1].sum() if zeros is None else zeros)

    def described(self) -> "SiteFlops":
        """The counts as they are now, without the model and the device that they were made on."""
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
        return tuple(stage.n for stage in self.plan.stages)

    @property
    def stopped(self) -> list[int]:
        """How many outputs stopped at each stage."""
        return [_total(count) for count in self.pruned_at]

    @property
    def pruned(self) -> int:
        return sum(self.stopped)

    @property
    def dense_flops(self) -> int:
        return _total(self._outputs * self.plan.dense_flops)

    @property
    def pruned_flops(self) -> int:
        """Terms evaluated plus tests, in FLOPs."""
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
        """FLOPs that its zeros spare in other layers: their columns there, the rows that they are multiplied with."""
        return _total(self.zeros) * self.spares + _total(self.row)

    @property
    def zero_terms(self) -> int:
        """FLOPs in :attr:`dense_flops` that multiply inputs that are exactly zero.

        Known of sites in the order of each input alone, whose :attr:`pruned_flops` has none; of others none is counted.
        """
        return 0 if self.by_input is None else self.dense_flops - 2 * _total(self.by_input.nonzero)

    @property
    def _outputs(self) -> int:
        """All outputs; where costs are per output channel, those of one channel."""
        costs = self.plan.dense_flops
        return self.outputs // len(costs) if isinstance(costs, Tensor) else self.outputs


@dataclass
class ByInput:
    """What a site in the order of each input costs, which its rows decide: weights, times outputs.

    Attributes:
        nonzero: weights of terms that are not exactly zero, of all outputs; others cost nothing.
        left: those of them that were not evaluated, of outputs that stopped.
        ranking: FLOPs of ranking the rows' terms.
    """

    nonzero: int | Tensor = 0
    left: int | Tensor = 0
    ranking: int = 0

    def add(self, nonzero: Tensor, left: Tensor, ranking: int) -> None:
        """Count some rows. Nothing waits for the device."""
        self.nonzero, self.left = self.nonzero + nonzero, self.left + left
        self.ranking += ranking


def _total(count: int | Tensor) -> int:
    return int(count.sum()) if isinstance(count, Tensor) else count


@dataclass(frozen=True)
class FlopReport:
    """FLOPs of a model's passes, dense and pruned: integers.

    ``unpruned`` is what :class:`torch.utils.flop_counter.FlopCounterMode` counts, linear algebra without bias,
    BatchNorm and activations, with what it has no formula for and we have (docs/method.md, section 5); ``zeros`` is the
    part of it that multiplies weights removed by static pruning; ``sites`` says where ``dense - pruned`` comes from.
    ``uncounted`` names what is in none of them though it may cost: operators that nobody has a formula for, and how
    often they were called. Pickled or copied it is of the counts alone: its sites have no model any more.
    """

    unpruned: int
    sites: tuple[SiteFlops, ...]
    zeros: int = 0
    uncounted: Mapping[str, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "sites": tuple(count.described() for count in self.sites)}

    @property
    def dense(self) -> int:
        return self.unpruned - self.zeros

    @property
    def pruned(self) -> int:
        return self.dense - sum(site.dense_flops - site.pruned_flops + site.spared for site in self.sites)

    @property
    def saved(self) -> float:
        """The fraction of the dense FLOPs that was saved; negative where the tests cost more."""
        return 1 - self.pruned / self.dense if self.dense else 0.0

    @property
    def dense_without_zero_terms(self) -> int | None:
        """Dense FLOPs of an engine that skips the sites' terms that are exactly zero; None: not counted.

        They are counted at sites in the order of each input, where :attr:`pruned` has none (docs/method.md, section 8).
        """
        if not any(site.by_input for site in self.sites):
            return None
        # Of activations that do not rectify all zeros are those of neurons that were stopped.
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
            lines.append(f"  not counted, for want of a formula: {calls}")
        return "\n".join(lines)
