"""The context under which a model runs pruned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core.accounting.account import Account
from exprune.core.accounting.flops import Flops, SiteFlops
from exprune.core.accounting.plan import checked, make_plan
from exprune.core.accounting.tally import FlopTally
from exprune.core.calls.effects import call_name, tensors
from exprune.core.calls.layers import LinearCall, masks_of
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.sites import Site
from exprune.core.errors import SettingError
from exprune.core.heuristics.heuristic import Heuristic, Tau, per_site
from exprune.core.settings import plain_knob, real
from exprune.core.simulation.stops import Stops
from exprune.core.sums.elementwise import write_zeros
from exprune.core.sums.partial import StagedFollower, Terms, Watcher, check_rows, some_rows


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
    adds to the same counts; a new ``ExPrune`` starts from zero. Inside another ``ExPrune`` it is to that one as if it
    were part of the model.

    A run accounts for itself: where a site was not tested as often as its layer was computed, in the thread that
    entered the context, the end of the context says which and why.

    Args:
        sites: from :func:`find_sites`. Those that cannot be pruned run dense; :attr:`sites` keeps the reason.
        heuristic: when to stop; None stops nothing and only counts.
        rows: a bool tensor over the flattened leading dimensions of the sites' outputs (all but the channels
            of a Linear, the batch of a convolution): rows that are no data (padding) are False and not
            counted. It can be set anew for every batch: ``run.rows = mask``.
        gain_ratio: of sites under a static mask, see :func:`exprune.core.accounting.plan.make_plan`; like tau one
            number, a list (one per eligible site) or a mapping of site names with wildcards.

    Raises:
        SettingError: no site is left to prune, or the heuristic's tau or gain_ratio does not fit the sites; inside the
            context, the model is in training mode or cannot be followed; at its end, a site was not pruned as planned.
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
        self._masks = self._masks_now()
        if heuristic is not None and not isinstance(heuristic, Heuristic):
            raise SettingError(f"heuristic={heuristic!r}: a Heuristic, such as StatsTest(0.1), or None")
        if heuristic is not None:
            self._plan(heuristic, gain_ratio)

    def _plan(self, heuristic: Heuristic, gain_ratio: Tau) -> None:
        stages = checked(heuristic.stages)
        known = [site for site in self.sites if site.eligible]
        ratios = per_site(plain_knob(gain_ratio), known, "gain_ratio")
        for index, site in enumerate(self.sites):
            if site.eligible:
                plan = make_plan(site, stages, _gain_ratio(ratios[site.name]), heuristic.order(site))
                if plan.stages:
                    overhead = tuple(heuristic.overhead(stage, site) for stage in range(len(plan.stages)))
                    self._counts[site.name] = SiteFlops(site, plan, overhead)
                else:
                    self.sites[index] = replace(site, reason=_why_no_stage(site, stages[0], ratios[site.name]))
        eligible = [site for site in self.sites if site.eligible]
        if not eligible:
            reasons = "; ".join(f"{site.name}: {site.reason}" for site in self.sites if site.relu)
            none = "no layer that can be followed feeds a ReLU"
            raise SettingError(f"no site to prune with n={stages[0]} ({reasons or none})")
        self.taus = per_site(heuristic.tau, eligible, known=known)

    def _masks_now(self) -> dict[str, Tensor]:
        return {site.name: mask for site in self.sites if (mask := site.mask) is not None}

    def _check_masks(self) -> None:
        now = self._masks_now()
        for name in now.keys() | self._masks.keys():
            if name not in now or name not in self._masks or not torch.equal(now[name], self._masks[name]):
                raise SettingError(f"{name}: its mask is another than when this ExPrune was made; make a new one")

    def __enter__(self) -> "ExPrune":
        if self._pruner is not None:
            raise RuntimeError("this ExPrune context is already entered")
        self._check_masks()
        self._pruner = _Pruner(self)
        self._pruner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        pruner, self._pruner = self._pruner, None
        pruner.__exit__(*exception)
        if exception[0] is not None:
            return
        self._check_masks()
        for name in pruner.unseen_masks if self._tally.flops else ():
            self._tally.uncounted[f"masked weights of {name}"] += 1
        if line := pruner.account.line():
            raise SettingError(line)
        if self._tally.flops and self._counts and not any(count.outputs for count in self._counts.values()):
            raise SettingError("none of the sites was reached: they belong to another model object")

    @property
    def flops(self) -> Flops:
        """What all passes so far cost, densely and pruned."""
        return Flops(self._tally.flops, tuple(self._counts.values()), self._zeros, dict(self._tally.uncounted))

    def state_dict(self) -> dict[str, Any]:
        """All counts, to go on with later: see :meth:`load_state_dict`."""
        sites = {name: {field: getattr(count, field) for field in _COUNTED} for name, count in self._counts.items()}
        uncounted = dict(self._tally.uncounted)
        return {"flops": self._tally.flops, "zeros": self._zeros, "uncounted": uncounted, "sites": sites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the counts of another run of the same sites and stages."""
        self._tally.flops, self._zeros = state["flops"], state["zeros"]
        self._tally.uncounted.update(state.get("uncounted", {}))
        for name, fields in state["sites"].items():
            for field, value in fields.items():
                setattr(self._counts[name], field, value)


_COUNTED = ("outputs", "pruned_at", "negative", "wrong")


def _gain_ratio(value: Any) -> float:
    return real(value, "gain_ratio", "a number above 0", lambda value: value > 0)


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
        several = run._counts and len(run.heuristic.stages) > 1  # the sums of one stage are not worth other last bits
        in_parts = {name: count.plan for name, count in run._counts.items()} if several else {}
        super().__init__(run.sites, in_parts, run._counts.keys())
        self.expruned = run
        self.account = Account()
        self.full: Tensor | None = None
        self.zeros = {name: mask.numel() - int(mask.count_nonzero()) for name, mask in run._masks.items()}
        # Masked layers of which no call was seen yet: nobody knows how often their zeros are used.
        self.unseen_masks = set(self.zeros) | {
            site.name
            for site in run.sites
            if not site.followed and any(not mask.all() for mask in masks_of(site.module).values())
        }
        self._early: dict[str, _Early] = {}
        self._never_early: set[str] = {name for name, count in run._counts.items() if count.site.residual}
        self._hidden = {site.module for site in run.sites if site.hidden}
        self._seen: list[bool] = []  # of each running module: whether it has called one of its layers

    def execute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return self.expruned._tally.call(func, args, kwargs)
        except Exception:
            self.account.forgive()
            raise

    # What a run accounts for.

    def enters(self, module: nn.Module) -> None:
        super().enters(module)
        self._seen.append(False)
        if module in self._hidden:
            self.expruned._tally.begin()

    def leaves(self, module: nn.Module, given: tuple, failed: bool) -> None:
        if module in self._hidden:
            self.expruned._tally.end()
        if failed:
            self._seen.pop()
            self.account.forgive()
            return
        sites = self._of_module[module]
        followed = [site.name for site in sites if site.followed]
        if not self._seen.pop() and followed and any(x.numel() for x in tensors(given)):
            self.account.fault(followed[0], "its module ran without a torch call of it (compiled, scripted, skipped?)")

    def in_another_thread(self, module: nn.Module) -> None:
        name = self._of_module[module][0].name
        self.account.fault(name, "its module ran in another thread than the one that entered the context")

    def elsewhere(self, name: str) -> None:
        self.account.fault(name, "its weight was used outside of a call of its module (its forward called directly?)")

    def reads(self, chain: Chain, func: Callable) -> None:
        self.account.fault(chain.name, f"its pre-activation is read by {call_name(func)}, not only by the ReLU")

    def tag(self, name: str, out: Tensor, call: LinearCall, bias: Tensor | None) -> None:
        self._seen[-1] = True
        self.unseen_masks.discard(name)
        if zeros := self.zeros.get(name):
            self.expruned._zeros += 2 * zeros * self._uses(call, out)
        if name in self.expruned._counts:
            self.account.computed[name] += bool(out.numel())
            super().tag(name, out, call, bias)

    def _uses(self, call: LinearCall, out: Tensor) -> int:
        """How often a call uses each of its weights, for rows that are data."""
        if call.transposed_conv:
            return call.input.numel() // call.terms
        positions, rows = out.numel() // call.weight.shape[0], self.expruned.rows
        if rows is not None and rows.numel() == positions and not call.is_conv:
            return int(rows.count_nonzero())
        return positions

    # What it does.

    def compute(
        self, name: str, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]
    ) -> tuple[Tensor, LinearCall]:
        self._early.pop(name, None)
        if self.expruned._tally.counts_all:
            return run(), call
        out, call = super().compute(name, call, bias, run)
        if call.sums or name in self._early:  # the tally has seen none of it
            self.expruned._tally.flops += out.numel() * self.expruned._counts[name].site.dense_flops
        return out, call

    def watch(self, name: str, call: LinearCall, bias: Tensor | None) -> Watcher | None:
        heuristic = self.expruned.heuristic
        if call.is_conv or name in self._never_early or heuristic.needs_squares or heuristic.needs_full:
            return None  # a convolution's blocks are too large for the cache
        if call.input.dim() < 2 or torch.is_grad_enabled():
            return None
        chain, mask, stops = Chain(name, call, shift=bias), self.expruned.rows, self._stops(name)
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
        return Stops(self.expruned.heuristic, self.expruned._counts[name], self.expruned.taus[name])

    def before_relu(self, chain: Chain, z: Tensor) -> None:
        if self.expruned.heuristic.needs_full:
            self.full = z.detach().clone()  # the ReLU may be in place

    def at_relu(self, chain: Chain, out: Tensor) -> None:
        self.account.tested[chain.name] += bool(out.numel())
        off = torch.autocast(out.device.type, enabled=False)
        with torch.no_grad(), off, self.expruned._tally.paused():
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
            self._add(chain, out, torch.stack(early.counts).sum(0), self.expruned.rows)
        for rows in some_rows(out, _CHUNK // 4):
            write_zeros(out[rows], early.stopped[rows])

    def _test(self, chain: Chain, out: Tensor) -> None:
        mask = self.expruned.rows
        if mask is not None:
            check_rows(mask, chain, out)
        full, shape, given = self.full, out.shape, out
        chain, out = _as_rows(chain, out)
        full = None if full is None else full.reshape(out.shape)
        terms, stops = self._terms(chain), self._stops(chain.name)
        for part, rows in _chunks(chain, out):
            chunk = out[rows]
            data = None if mask is None else self._data_rows(chain, chunk, rows)
            self._stop(stops, part, terms, data, None if full is None else full[rows])
            self._add(chain, chunk, stops.counts(chunk, data), data)
            write_zeros(chunk, stops.stopped())
        if out.data_ptr() != given.data_ptr():  # its rows could not be made one dimension without a copy
            given.copy_(out.view(shape))

    def _terms(self, chain: Chain) -> list[Terms] | None:
        """The terms of each stage; None where their sums are known and no squares are needed."""
        if chain.call.sums and not self.expruned.heuristic.needs_squares:
            return None
        stages = self.expruned._counts[chain.name].plan.stages
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
        self.expruned._counts[chain.name].add(outputs, counts)

    def _data_rows(self, chain: Chain, out: Tensor, rows: slice) -> Tensor | None:
        """The mask of data rows, to broadcast with ``out``, a chunk of the layer's output; None where all are data."""
        dims = -chain.call.channel_dim
        leading = out.shape[: out.dim() - dims]
        mask = self.expruned.rows.reshape(-1, *leading[1:])[rows]
        if mask.all():
            return None
        return mask.to(out.device, torch.bool).view(*leading, *(1,) * dims)


# Outputs tested at a time: on a CPU, by each core, few enough that the passes over them stay in its caches.
_CHUNK = 2**19


def _as_rows(chain: Chain, out: Tensor) -> tuple[Chain, Tensor]:
    """The chain and output of a Linear with all its rows in one dimension, so that any number of them make a chunk."""
    if chain.call.is_conv:
        return chain, out

    def rows(values: Tensor) -> Tensor:
        return values.reshape(-1, values.shape[-1])

    residual = chain.residual
    if residual is not None and residual.dim() > 1:
        residual = rows(residual.expand_as(out))
    call = replace(chain.call, input=rows(chain.call.input), sums=tuple(map(rows, chain.call.sums)))
    return replace(chain, call=call, residual=residual), rows(out)


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
