"""The context under which a model runs pruned."""

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
    """Run a model with the neurons of ``sites`` stopped early by ``heuristic``, and count what that saves.

        with ExPrune(sites, StatsTest(0.1)) as run:
            out = model(batch)
        run.flops

    Inside the context every output that the heuristic stops is exactly 0 after its activation, or what that makes
    of its predicted value; everything else is computed as always. This simulates the method: the dense
    pre-activation is computed too, so it counts FLOPs and does not run faster. (With several stages a layer's
    output is made of their partial sums, which differs from the model's own in the last bits.) Under a static mask
    (:attr:`Site.mask`) only the weights that are left count. For inference only: the model must be in eval mode.
    Neither the model nor its parameters are changed, and nothing stays behind, also after an exception. Entering
    the context again adds to the same counts; a new ``ExPrune`` starts from zero. Inside another ``ExPrune`` it is
    to that one as if it were part of the model. A run accounts for itself: where a site was not tested as often as
    its layer was computed, in the thread that entered the context, the end of the context says which and why.

    Args:
        sites: from :func:`find_sites`. Those that cannot be pruned run dense; :attr:`sites` keeps the reason.
        heuristic: when to stop; None stops nothing and only counts.
        rows: a bool tensor over the flattened leading dimensions of the sites' outputs (all but the channels
            of a Linear, the batch of a convolution): rows that are no data (padding) are False and not
            counted. It can be set anew for every batch: ``run.rows = mask``.
        gain_ratio: of sites under a static mask, see :func:`exprune.core.accounting.plan.make_plan`; like tau one
            number, a list (one per eligible site) or a mapping of site names with wildcards. None: the heuristic's own.

    Raises:
        SettingError: no site is left to prune, or the heuristic's tau or gain_ratio does not fit the sites; inside the
            context, the model is in training mode or cannot be followed; at its end, a site was not pruned as planned.
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
            raise SettingError(f"heuristic={heuristic!r}: a Heuristic, such as StatsTest(0.1), or None")
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
        """FLOPs in layers that run dense that a 0 of this site spares, and that the dense network spends.

        The columns of a ReLU's zeros are the dense network's own saving. Sites count what they do themselves.
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
                raise SettingError(f"{name}: its mask is another than when this ExPrune was made; make a new one")

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
                "none of the sites was reached: the model object that they were found in ran none of them; find those "
                "of the one that runs"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the model runs as if this context were not entered."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    @cached_property
    def tables(self) -> dict[str, DecisionTable]:
        """What the heuristic decides, by site, solved when it is first asked for; none of one that decides itself."""
        if self.heuristic is None:
            return {}
        solved = {
            name: self.heuristic.solve(of.site, of.plan, self.taus[name]) for name, of in self._ledger.sites.items()
        }
        return {name: table for name, table in solved.items() if table is not None}

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """Which inputs are evaluated, by site, likewise; none of a heuristic that tests in stages."""
        return {} if self.heuristic is None else self.heuristic.choices(self.sites, self.taus)

    @property
    def flops(self) -> FlopReport:
        """What all passes so far cost, densely and pruned."""
        return self._ledger.flops

    def state_dict(self) -> dict[str, Any]:
        """All counts, to go on with later: see :meth:`load_state_dict`."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the counts of another run of the same sites and stages."""
        self._ledger.load_state_dict(state)


def _check_fits(heuristic: Heuristic, site: Site, order: Tensor | str | None) -> None:
    kind = type(heuristic).__name__
    if not site.before_activation and not heuristic.predicts:
        raise SettingError(
            f"{kind}: {site.name} feeds no activation, so it can be stopped with a prediction alone, as Optimal with "
            "predict=true does; or prune scope=relu"
        )
    if isinstance(order, str) and heuristic.needs_squares:
        raise SettingError(f"{kind}: order={order!r} of {site.name}: there are no sums of squares in this order")


def _gain_ratio(value: Any) -> float:
    return real(value, "gain_ratio", "a number above 0", lambda value: value > 0)


def _why_no_stage(site: Site, n: int, gain_ratio: float) -> str:
    if site.mask is None or site.terms <= n:
        return f"{site.terms} terms, fewer than n + 1 = {n + 1}"
    return f"too few weights left for a test after n={n} terms with gain_ratio={gain_ratio:g}"
