"""The context under which a model runs pruned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exprune.core.chain import Chain, LinearCall
from exprune.core.counting import FlopTally
from exprune.core.elementwise import write_zeros
from exprune.core.errors import SettingError
from exprune.core.flops import Flops, SiteFlops
from exprune.core.heuristics import Heuristic, Tau, per_site
from exprune.core.partial import StagedFollower, Terms, Watcher, check_rows, some_rows
from exprune.core.plan import checked, make_plan
from exprune.core.sites import Site
from exprune.core.stops import Stops


class ExPrune:
    """Run a model with the neurons of ``sites`` stopped early by ``heuristic``, and count what that saves.

        with ExPrune(sites, StatsTest(0.1)) as run:
            out = model(batch)
        run.flops

    Inside the context every output that the heuristic stops is exactly 0 after its ReLU; everything else is
    computed as always. This simulates the method: the dense pre-activation is computed too, so it counts
    FLOPs and does not run faster. (With several stages a layer's output is made of their partial sums, which
    differs from the model's own in the last bits.) Under a static mask (:attr:`Site.mask`) only the weights that are
    left count. For inference only: the model must be in eval mode. Neither the model nor its parameters are changed,
    and nothing stays behind, also after an exception. Entering the context again
    adds to the same counts; a new ``ExPrune`` starts from zero.

    Args:
        sites: from :func:`find_sites`. Those that cannot be pruned run dense; :attr:`sites` keeps the reason.
        heuristic: when to stop; None stops nothing and only counts.
        rows: a bool tensor over the flattened leading dimensions of the sites' outputs (all but the channels
            of a Linear, the batch of a Conv2d): rows that are no data (padding) are False and not
            counted. It can be set anew for every batch: ``run.rows = mask``.
        gain_ratio: of sites under a static mask, see :func:`exprune.core.plan.make_plan`; like tau one number, a
            list (one per eligible site) or a mapping of site names with wildcards.

    Raises:
        SettingError: no site is left to prune, or the heuristic's tau or gain_ratio does not fit the sites.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        heuristic: Heuristic | None,
        rows: Tensor | None = None,
        gain_ratio: Tau = 0.5,
    ) -> None:
        self.sites = list(sites)
        self.heuristic = heuristic
        self.rows = rows
        self.taus: dict[str, float | None] = {}
        self._counts: dict[str, SiteFlops] = {}
        self._tally = FlopTally()
        self._zeros = 0
        self._pruner: _Pruner | None = None
        if heuristic is not None:
            self._plan(heuristic, gain_ratio)

    def _plan(self, heuristic: Heuristic, gain_ratio: Tau) -> None:
        stages = checked(heuristic.stages)
        known = [site for site in self.sites if site.eligible]
        ratios = per_site(gain_ratio, known, "gain_ratio")
        for index, site in enumerate(self.sites):
            if site.eligible:
                plan = make_plan(site, stages, _checked(ratios[site.name]), heuristic.order(site))
                if plan.stages:
                    overhead = tuple(heuristic.overhead(stage, site) for stage in range(len(plan.stages)))
                    self._counts[site.name] = SiteFlops(site, plan, overhead)
                else:
                    self.sites[index] = replace(site, reason=_why_no_stage(site, stages[0], ratios[site.name]))
        eligible = [site for site in self.sites if site.eligible]
        if not eligible:
            reasons = "; ".join(f"{site.name}: {site.reason}" for site in self.sites if site.relu)
            raise SettingError(f"no site to prune with n={stages[0]} ({reasons or 'no layer feeds a ReLU'})")
        self.taus = per_site(heuristic.tau, eligible, known=known)

    def __enter__(self) -> "ExPrune":
        if self._pruner is not None:
            raise RuntimeError("this ExPrune context is already entered")
        self._pruner = _Pruner(self)
        self._pruner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        pruner, self._pruner = self._pruner, None
        pruner.__exit__(*exception)
        missed = self._counts and not any(count.outputs for count in self._counts.values())
        if exception[0] is None and self._tally.flops and missed:
            raise SettingError(
                "none of the sites was reached: they belong to another model object, or it was compiled since"
            )

    @property
    def flops(self) -> Flops:
        """What all passes so far cost, densely and pruned."""
        return Flops(self._tally.flops, tuple(self._counts.values()), self._zeros)

    def state_dict(self) -> dict[str, Any]:
        """All counts, to go on with later: see :meth:`load_state_dict`."""
        sites = {name: {field: getattr(count, field) for field in _COUNTED} for name, count in self._counts.items()}
        return {"flops": self._tally.flops, "zeros": self._zeros, "sites": sites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the counts of another run of the same sites and stages."""
        self._tally.flops, self._zeros = state["flops"], state["zeros"]
        for name, fields in state["sites"].items():
            for field, value in fields.items():
                setattr(self._counts[name], field, value)


_COUNTED = ("outputs", "pruned_at", "negative", "wrong")


def _checked(gain_ratio: Any) -> float:
    if isinstance(gain_ratio, bool) or not isinstance(gain_ratio, int | float) or not gain_ratio > 0:
        raise SettingError(f"gain_ratio={gain_ratio!r}: a number above 0")
    return gain_ratio


def _why_no_stage(site: Site, n: int, gain_ratio: float) -> str:
    if site.mask is None or site.terms <= n:
        return f"{site.terms} terms, fewer than n + 1 = {n + 1}"
    return f"too few weights left for a test after n={n} terms with gain_ratio={gain_ratio:g}"


@dataclass
class _Early:
    """The outcome of tests that were made while a layer was computed."""

    call: LinearCall
    stopped: Tensor  # in the shape of the layer's output
    counts: list[Tensor]  # of each block of rows


class _Pruner(StagedFollower):
    """Stops neurons where their chain reaches the ReLU.

    A Linear layer whose output goes straight to its ReLU is tested while it is computed, its sums still in the cache.
    What comes after a layer is not known before: each is taken to be such a one until it proves to be none.
    """

    def __init__(self, run: ExPrune) -> None:
        masks = {site.name: mask for site in run.sites if (mask := site.mask) is not None}
        followed = [site for site in run.sites if site.name in run._counts or site.name in masks]
        several = run._counts and len(run.heuristic.stages) > 1  # the sums of one stage are not worth other last bits
        super().__init__(followed, {name: count.plan for name, count in run._counts.items()} if several else {})
        self.run = run
        self.full: Tensor | None = None
        self.zeros = {name: mask.numel() - int(mask.count_nonzero()) for name, mask in masks.items()}
        self._early: dict[str, _Early] = {}
        self._never_early: set[str] = {name for name, count in run._counts.items() if count.site.residual}

    def call(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        return self.run._tally.call(func, args, kwargs)

    def compute(self, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        name = self._running[-1]
        self._early.pop(name, None)
        out, call = super().compute(call, bias, run)
        if call.sums or name in self._early:  # the tally has seen none of it
            self.run._tally.flops += out.numel() * self.run._counts[name].site.dense_flops
        return out, call

    def watch(self, call: LinearCall, bias: Tensor | None) -> Watcher | None:
        name, heuristic = self._running[-1], self.run.heuristic
        if call.is_conv or name in self._never_early or heuristic.needs_squares or heuristic.needs_full:
            return None  # a convolution's blocks are too large for the cache
        if call.input.dim() < 2 or torch.is_grad_enabled():
            return None
        chain, mask, stops = Chain(name, call, shift=bias), self.run.rows, self._stops(name)
        if mask is not None:
            check_rows(mask, chain, call.input)
        shape = (*call.input.shape[:-1], len(call.weight))
        early = self._early[name] = _Early(call, call.input.new_empty(shape, dtype=torch.bool), [])
        data = None

        def watcher(rows: slice, stage: int, sums: Tensor) -> None:
            nonlocal data
            if mask is not None and not stage:
                data = self._data_rows(chain, sums, rows)
            if stage < len(stops.plan.stages):
                stops.test(stage, chain, sums, None, data=data)
            else:
                early.stopped[rows] = stops.stopped()
                early.counts.append(stops.counts(sums.clamp(min=0), data))

        return watcher

    def _stops(self, name: str) -> Stops:
        return Stops(self.run.heuristic, self.run._counts[name], self.run.taus[name])

    def _tag(self, out: Tensor, call: LinearCall, bias: Tensor | None) -> None:
        super()._tag(out, call, bias)
        positions = out.numel() // call.weight.shape[0]
        if self.run.rows is not None and self.run.rows.numel() == positions and not call.is_conv:
            positions = int(self.run.rows.count_nonzero())
        self.run._zeros += 2 * self.zeros.get(self.chains[out].name, 0) * positions

    def before_relu(self, chain: Chain, z: Tensor) -> None:
        if chain.name in self.run._counts and self.run.heuristic.needs_full:
            self.full = z.detach().clone()  # the ReLU may be in place

    def at_relu(self, chain: Chain, out: Tensor) -> None:
        if chain.name not in self.run._counts:
            return
        with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
            if self._is_early(chain):
                self._finish_early(self._early.pop(chain.name), chain, out)
            else:
                self._test(chain, out)
        self.full = None

    def _is_early(self, chain: Chain) -> bool:
        """Whether this call was tested while it was computed, as if its chain were what it has proved to be."""
        early = self._early.get(chain.name)
        if early is None:
            return False
        if early.call is chain.call and chain.stage:
            self._never_early.add(chain.name)
        return early.call is chain.call and not chain.stage

    def _finish_early(self, early: _Early, chain: Chain, out: Tensor) -> None:
        if early.counts:
            self._add(chain, out, torch.stack(early.counts).sum(0), self.run.rows)
        for rows in some_rows(out, _CHUNK // 4):
            write_zeros(out[rows], early.stopped[rows])

    def _test(self, chain: Chain, out: Tensor) -> None:
        mask = self.run.rows
        if mask is not None:
            check_rows(mask, chain, out)
        chain, out = _as_rows(chain, out)
        full = None if self.full is None else self.full.view_as(out)
        terms, stops = self._terms(chain), self._stops(chain.name)
        for part, rows in _chunks(chain, out):
            chunk = out[rows]
            data = None if mask is None else self._data_rows(chain, chunk, rows)
            self._stop(stops, part, terms, data, None if full is None else full[rows])
            self._add(chain, chunk, stops.counts(chunk, data), data)
            write_zeros(chunk, stops.stopped())

    def _terms(self, chain: Chain) -> list[Terms] | None:
        """The terms of each stage; None where their sums are known and no squares are needed."""
        if chain.call.sums and not self.run.heuristic.needs_squares:
            return None
        stages = self.run._counts[chain.name].plan.stages
        return [Terms.of(chain.call, stage.channels, stage.keep, chain.scale) for stage in stages]

    def _stop(
        self, stops: Stops, chain: Chain, terms: Sequence[Terms] | None, data: Tensor | None, full: Tensor | None
    ) -> None:
        """Test some rows of a layer at every stage."""
        x, part, q = chain.call.input, None, None
        for index in range(len(stops.plan.stages)):
            inputs = None if terms is None else terms[index].inputs(x)
            if chain.call.sums:
                part, scale = chain.call.sums[index], chain.scale
            else:  # of terms with the scale in them
                part, scale = terms[index].sum(inputs, part, part), None
            if stops.heuristic.needs_squares:
                squares = terms[index].squares(inputs)
                q = squares if q is None else squares.add_(q)
            stops.test(index, chain, part, scale, q, data, full)

    def _add(self, chain: Chain, out: Tensor, counts: Tensor, data: Tensor | None) -> None:
        """Count outputs of the chain's ReLU, of rows that are ``data``."""
        outputs = out.numel() if data is None else int(data.sum()) * (out.numel() // data.numel())
        self.run._counts[chain.name].add(outputs, counts)

    def _data_rows(self, chain: Chain, out: Tensor, rows: slice) -> Tensor | None:
        """The mask of data rows, to broadcast with ``out``, a chunk of the layer's output; None where all are data."""
        dims = -chain.call.channel_dim
        leading = out.shape[: out.dim() - dims]
        mask = self.run.rows.reshape(-1, *leading[1:])[rows]
        if mask.all():
            return None
        return mask.to(out.device, torch.bool).view(*leading, *(1,) * dims)


# Outputs tested at a time: on a CPU, by each core, few enough that the passes over them stay in its caches.
_CHUNK = 2**19


def _as_rows(chain: Chain, out: Tensor) -> tuple[Chain, Tensor]:
    """The chain and output of a Linear with all its rows in one dimension, so that any number of them make a chunk."""
    if chain.call.is_conv or out.dim() < 3 or not out.is_contiguous():
        return chain, out
    residual = chain.residual
    if residual is not None and residual.dim() > 1:
        residual = residual.expand_as(out).flatten(0, -2)
    sums = tuple(so_far.flatten(0, -2) for so_far in chain.call.sums)
    call = replace(chain.call, input=chain.call.input.flatten(0, -2), sums=sums)
    return replace(chain, call=call, residual=residual), out.flatten(0, -2)


def _chunks(chain: Chain, out: Tensor) -> Iterator[tuple[Chain, slice]]:
    """The chain of some rows (inputs of a batch) at a time."""
    if out.dim() == -chain.call.channel_dim:  # no batch
        yield chain, slice(None)
        return
    for rows in some_rows(out, _CHUNK):
        residual = chain.residual
        if residual is not None and residual.dim() == out.dim() and residual.shape[0] == len(out):
            residual = residual[rows]
        sums = tuple(so_far[rows] for so_far in chain.call.sums)
        call = replace(chain.call, input=chain.call.input[rows], sums=sums)
        yield replace(chain, call=call, residual=residual), rows
