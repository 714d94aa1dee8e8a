"""The context in which a model runs pruned."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from exprune.core.accounting.audit import RunAudit
from exprune.core.accounting.counting import Counting
from exprune.core.accounting.flops import FlopReport, SiteFlops
from exprune.core.accounting.ledger import Ledger
from exprune.core.accounting.plan import checked, make_plan
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.table import DecisionTable
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Tau, per_site
from exprune.core.settings import plain_knob, real
from exprune.core.simulation.pruner import Pruner
from exprune.core.tracing.known import KnownSites
from exprune.core.tracing.tracer import Tracer


class ExPrune:
    """Context manager that runs a model pruned, and counts the FLOPs that this saves.

    Inside the context, every output that the heuristic stops is 0 after its activation, or the activation of its
    predicted value. All other outputs are computed as usual. This is a simulation: the dense pre-activation is computed
    too, so the run does not become faster. (With several stages, outputs are sums of partial sums, which differ from
    the model's own in the last bits.) Under a static mask (`Site.mask`) only the remaining weights count.

    The model must be in eval mode. The model and its parameters are not changed, and all hooks are removed at the end,
    also after an exception. Entering the same context again adds to its counts; a new `ExPrune` starts at zero. An
    `ExPrune` inside another one is treated as part of the model. At the end of the context, the run is audited: if a
    site was not tested as often as its layer was computed, an error names the site and the reason.

    Args:
        sites: The layers, from `find_sites`. Those that cannot be pruned run dense, and `sites` keeps the reason.
        heuristic: When to stop; None stops nothing and only counts.
        rows: A bool tensor over the flattened leading dimensions of the sites' outputs (all but the channels of a
            Linear layer; the batch of a convolution). Rows that are False are padding, and are not counted. It can be
            set for every batch by ``run.rows = mask``.
        gain_ratio: Tests only neurons with enough weights left; used under a static mask (docs/method.md, section 3).
            One number, a list with one number per eligible site, or a mapping of site names. None uses the heuristic's.

    Attributes:
        sites: The layers; those that run dense carry the reason.
        heuristic: The heuristic.
        rows: See above.
        taus: The setting of each pruned site, by name.

    Raises:
        SettingError: If no site can be pruned, or if ``tau`` or ``gain_ratio`` does not fit the sites. Inside the
            context, if the model is in training mode or cannot be followed. At its end, if a site was not pruned as
            planned.
        RuntimeError: If the context is already entered.

    Example:
        ```python
        sites = find_sites(model, batch)
        with torch.no_grad(), ExPrune(sites, StatsTest(0.1)) as run:
            outputs = model(batch)
        print(run.flops)
        ```
    """

    def __init__(
        self,
        sites: Sequence[Site],
        heuristic: Heuristic | None,
        rows: Tensor | None = None,
        gain_ratio: Tau | None = None,
    ) -> None:
        self.sites = list(sites)
        self.heuristic = heuristic
        self.rows = rows
        self.taus: dict[str, float | None] = {}
        self._ledger = Ledger()
        self._entered: tuple[Tracer, RunAudit, Counting] | None = None
        self._masks = self._masks_now()
        if heuristic is not None and not isinstance(heuristic, Heuristic):
            raise SettingError(f"heuristic={heuristic!r}: must be a Heuristic, such as StatsTest(0.1), or None")
        if heuristic is not None:
            self._plan(heuristic, heuristic.gain_ratio if gain_ratio is None else gain_ratio)

    def _plan(self, heuristic: Heuristic, gain_ratio: Tau) -> None:
        stages = checked(heuristic.stages)
        known = [site for site in self.sites if site.eligible]
        ratios = per_site(plain_knob(gain_ratio), known, "gain_ratio")
        for index, site in enumerate(self.sites):
            if site.eligible:
                gain = _gain_ratio(ratios[site.name])
                if why := heuristic.refuses(site):
                    self.sites[index] = replace(site, reason=why)
                    continue
                order = heuristic.order(site)
                _check_fits(heuristic, site, order)
                plan = make_plan(site, stages, gain, order)
                if plan.stages:
                    overhead = tuple(heuristic.overhead(stage, site) for stage in range(len(plan.stages)))
                    self._ledger.sites[site.name] = SiteFlops(site, plan, overhead)
                else:
                    self.sites[index] = replace(site, reason=_why_no_stage(site, stages[0], gain))
        eligible = [site for site in self.sites if site.eligible]
        if not eligible:
            reasons = "; ".join(f"{site.name}: {site.reason}" for site in self.sites if site.activation is not None)
            none = "no layer that can be followed feeds an activation"
            raise SettingError(f"no site to prune with n={stages[0]} ({reasons or none})")
        for count in self._ledger.sites.values():
            count.spares = self._spared_elsewhere(count.site)
        self.taus = per_site(heuristic.tau, eligible, known=known)

    def _spared_elsewhere(self, site: Site) -> int:
        """FLOPs of layers that run dense which an output of 0 saves, and which the dense network spends.

        The columns of a ReLU's zeros are not among them: the dense network can skip those as well. Pruned sites count
        their own savings.
        """
        wholes = {other.name: other.whole for other in self.sites}
        counted = {*self._ledger.sites, *(wholes[name] for name in self._ledger.sites), *self._masks}
        spared = site.spared_by_stopping.items()
        return sum(flops for name, flops in spared if name not in counted and wholes.get(name) not in self._masks)

    def _masks_now(self) -> dict[str, Tensor]:
        return {site.name: mask for site in self.sites if site.rows is None and (mask := site.mask) is not None}

    def _check_masks(self) -> None:
        now = self._masks_now()
        for name in now.keys() | self._masks.keys():
            if name not in now or name not in self._masks or not torch.equal(now[name], self._masks[name]):
                raise SettingError(f"{name}: its mask has changed since this ExPrune was made; make a new ExPrune")

    def __enter__(self) -> "ExPrune":
        if self._entered is not None:
            raise RuntimeError("this ExPrune context is already entered")
        self._check_masks()
        ledger = self._ledger
        audit = RunAudit(self.sites, ledger.sites.keys())
        counting = Counting(self.sites, self._masks, ledger, lambda: self.rows)
        pruner = Pruner(self.heuristic, self.taus, ledger, lambda: self.rows, self.tables, self.choices)
        known = KnownSites(self.sites, ledger.sites.keys(), audit.fault)
        tracer = Tracer(known, (counting, audit, pruner), ledger.flop_counter.call, pruner.compute)
        self._entered = tracer, audit, counting
        tracer.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        assert self._entered is not None
        (tracer, audit, counting), self._entered = self._entered, None
        tracer.__exit__(*exception)
        if exception[0] is not None:
            return
        self._check_masks()
        flop_counter, counts = self._ledger.flop_counter, self._ledger.sites.values()
        for name in counting.unseen_masks if flop_counter.flops else ():
            flop_counter.uncounted[f"masked weights of {name}"] += 1
        if line := audit.line():
            raise SettingError(line)
        if flop_counter.flops and counts and not any(count.outputs for count in counts):
            raise SettingError(
                "none of the sites was reached: the model that ran is not the one they were found in; call find_sites "
                "on the model that runs"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context the model runs as if the ExPrune context were not entered."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    @cached_property
    def tables(self) -> dict[str, DecisionTable]:
        """The decision tables of the heuristic by site, computed on first use; empty if its `stop` decides."""
        if self.heuristic is None:
            return {}
        solved = {
            name: self.heuristic.solve(of.site, of.plan, self.taus[name]) for name, of in self._ledger.sites.items()
        }
        return {name: table for name, table in solved.items() if table is not None}

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """The choices of inputs by site, computed on first use; empty for a heuristic that tests in stages."""
        return {} if self.heuristic is None else self.heuristic.choices(self.sites, self.taus)

    @property
    def flops(self) -> FlopReport:
        """FLOPs of all passes so far, dense and pruned."""
        return self._ledger.flops

    def state_dict(self) -> dict[str, Any]:
        """All counts, for `load_state_dict`."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the counts of another run with the same sites and stages."""
        self._ledger.load_state_dict(state)


def _check_fits(heuristic: Heuristic, site: Site, order: Tensor | str | None) -> None:
    kind = type(heuristic).__name__
    if not site.before_activation and not heuristic.predicts:
        raise SettingError(
            f"{kind}: {site.name} feeds no activation, so a stopped neuron needs a prediction, as with Optimal and "
            "predict=true; or prune with scope=relu"
        )
    if isinstance(order, str) and heuristic.needs_squares:
        raise SettingError(f"{kind}: order={order!r} of {site.name}: there are no sums of squares in this order")


def _gain_ratio(value: Any) -> float:
    return real(value, "gain_ratio", "a number above 0", lambda value: value > 0)


def _why_no_stage(site: Site, n: int, gain_ratio: float) -> str:
    if site.mask is None or site.terms <= n:
        return f"has {site.terms} terms, fewer than n + 1 = {n + 1}"
    return f"has too few weights left for a test after n={n} terms with gain_ratio={gain_ratio:g}"
