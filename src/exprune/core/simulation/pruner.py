"""What happens at each call of a pruned run: layers are computed, tested at their activation, and accounted for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exprune.core.accounting.account import Account
from exprune.core.accounting.ledger import Ledger
from exprune.core.calls.effects import call_name, tensors
from exprune.core.calls.formulas import multiply_adds
from exprune.core.calls.layers import LinearCall
from exprune.core.calls.weights import masks_of
from exprune.core.decisions.table import DecisionTable
from exprune.core.discovery.chain import Chain
from exprune.core.discovery.sites import Site
from exprune.core.heuristics.heuristic import Heuristic
from exprune.core.simulation.blocks import as_rows, chunks, data_mask, same_memory
from exprune.core.simulation.by_input import prune_by_input
from exprune.core.simulation.gates import Gates
from exprune.core.simulation.stops import Stops
from exprune.core.sums.input_order import Columns, inputs_at_once
from exprune.core.sums.parts import StagedFollower
from exprune.core.sums.rows import check_rows
from exprune.core.sums.terms import Terms


class Pruner(StagedFollower):
    """Stops neurons where their chain reaches the activation.

    Args:
        sites, heuristic: of the run.
        taus: the knob of each site that is pruned, by name.
        masks: of the sites that have one, by name.
        ledger: where to count; its sites are those that are pruned.
        rows: says which rows of the current batch are data, see :class:`~exprune.core.ExPrune`.
        tables: what the heuristic has solved, by site.

    Attributes:
        account: what was computed, and what was tested.
        unseen_masks: masked layers of which no call was seen yet: nobody knows how often their zeros are used.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        heuristic: Heuristic | None,
        taus: Mapping[str, float | None],
        masks: Mapping[str, Tensor],
        ledger: Ledger,
        rows: Callable[[], Tensor | None],
        tables: Mapping[str, DecisionTable],
    ) -> None:
        several = heuristic is not None and len(heuristic.stages) > 1
        # The sums of one stage are not worth other last bits.
        in_parts = {name: of.plan for name, of in ledger.sites.items()} if several else {}
        super().__init__(sites, in_parts, ledger.sites.keys())
        self._heuristic, self._taus, self._ledger, self._rows, self._tables = heuristic, taus, ledger, rows, tables
        self._needs_full = heuristic is not None and heuristic.needs_full
        self._needs_squares = heuristic is not None and heuristic.needs_squares
        self.account = Account()
        self._full: Tensor | None = None  # the pre-activation, where the heuristic needs it
        self._zeros = {name: mask.numel() - int(mask.count_nonzero()) for name, mask in masks.items()}
        self.unseen_masks = set(self._zeros) | {
            site.name
            for site in sites
            if not site.followed and any(not mask.all() for mask in masks_of(site.module).values())
        }
        self._split = {count.site.whole for count in ledger.sites.values()} - {None}
        self._gates = Gates(ledger.sites)
        self._hidden = {site.module for site in sites if site.hidden}
        self._seen: list[bool] = []  # of each running module: whether it has called one of its layers

    def execute(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return self._ledger.tally.call(func, args, kwargs)
        except Exception:
            self.account.forgive()
            raise

    # What a run accounts for.

    def enters(self, module: nn.Module) -> None:
        super().enters(module)
        self._seen.append(False)
        if module in self._hidden:
            self._ledger.tally.begin()

    def leaves(self, module: nn.Module, given: tuple, failed: bool) -> None:
        if module in self._hidden:
            self._ledger.tally.end()
        if failed:
            self._seen.pop()
            self.account.forgive()
            return
        followed = [site.name for site in self._of_module[module] if site.followed]
        if not self._seen.pop() and followed and any(x.numel() for x in tensors(given)):
            self.account.fault(followed[0], "its module ran, and no torch call with its weight was seen in it")

    def in_another_thread(self, module: nn.Module) -> None:
        name = self._of_module[module][0].name
        self.account.fault(name, "its module ran in another thread than the one that entered the context")

    def elsewhere(self, name: str) -> None:
        self.account.fault(name, "its weight was used while its module did not run")

    def reads(self, chain: Chain, func: Callable) -> None:
        if chain.name not in self._ledger.sites:  # of which parts are sites
            return
        self.account.fault(chain.name, f"its pre-activation is read by {call_name(func)}, not only by its activation")

    def tag(self, name: str, out: Tensor, call: LinearCall, bias: Tensor | None) -> None:
        self._seen[-1:] = [True] if self._seen else []
        self.unseen_masks.discard(name)
        if zeros := self._zeros.get(name):
            self._ledger.zeros += 2 * multiply_adds(call.weight.dtype) * zeros * self._uses(call, out)
        if name in self._ledger.sites or name in self._split:
            super().tag(name, out, call, bias)

    def begin(self, chain: Chain, out: Tensor) -> None:
        if chain.name in self._ledger.sites:
            self.account.computed[chain.name] += bool(out.numel())
        super().begin(chain, out)

    def _uses(self, call: LinearCall, out: Tensor) -> int:
        """How often a call uses each of its weights, for rows that are data."""
        if call.transposed_conv:
            return call.input.numel() // call.terms
        positions, rows = out.numel() // call.weight.shape[0], self._rows()
        if rows is not None and rows.numel() == positions and not call.is_conv:
            return int(rows.count_nonzero())
        return positions

    # What it does.

    def compute(
        self, name: str, call: LinearCall, bias: Tensor | None, run: Callable[[], Tensor]
    ) -> tuple[Tensor, LinearCall]:
        if self._ledger.tally.counts_all:
            return run(), call
        out, call = super().compute(name, call, bias, run)
        if call.sums:  # the tally has seen none of it
            self._ledger.tally.flops += out.numel() * self._ledger.sites[name].site.dense_flops
        return out, call

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        if self._needs_full:
            self._full = z.detach().clone()  # the activation may be in place

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        self.account.tested[chain.name] += bool(out.numel())
        off = torch.autocast(out.device.type, enabled=False)
        with torch.no_grad(), off, self._ledger.tally.paused():
            self._prune(chain, out)
        self._full = None

    def _prune(self, chain: Chain, out: Tensor) -> None:
        """Test all neurons of a call, some rows at a time; count them, and write the zeros of those that stop."""
        assert self._heuristic is not None  # without one there are no sites to prune
        mask, of = self._rows(), self._ledger.sites[chain.name]
        if mask is not None:
            check_rows(mask, chain, out)
        given, shape = out, out.shape
        chain, out = as_rows(chain, out)
        full = None if self._full is None else self._full.reshape(out.shape)
        name = chain.name
        terms, stops = self._terms(chain), Stops(self._heuristic, of, self._taus[name], self._tables.get(name))
        columns = most = gate = None
        noted: list[Tensor] = []
        if of.plan.by_input:
            columns, most = Columns.of(chain.call, chain.scale), inputs_at_once(chain.call, out)
            gate = self._gates.known(chain.name, out)
        for part, rows in chunks(chain, out, most):
            chunk = out[rows]
            data = None if mask is None else data_mask(mask, chain, chunk, rows)
            of_full = None if full is None else full[rows]
            ranked = None
            if columns is not None:
                of_gate = None if gate is None else gate[rows]
                ranked = prune_by_input(stops, of, part, chunk, columns, data, of_full, of_gate)
            else:
                self._test(stops, part, terms, data, of_full)
                outputs = chunk.numel() if data is None else int(data.sum()) * (chunk.numel() // data.numel())
                of.add(outputs, stops.counts(chunk, data), stops.zeros(data))
                stops.write(chunk, chain.activation)
            if self._gates.watches(chain.name):
                noted.append(self._gates.note(stops, ranked, data))
        if noted:
            self._gates.done(chain.name, noted, out)
        if not same_memory(out, given):  # its rows could not be made one dimension without a copy
            given.copy_(out.view(shape))

    def _terms(self, chain: Chain) -> list[Terms] | None:
        """The terms of each stage; None where their sums are known and no squares are needed."""
        if self._ledger.sites[chain.name].plan.by_input or (chain.call.sums and not self._needs_squares):
            return None
        stages = self._ledger.sites[chain.name].plan.stages
        return [Terms.of(chain.call, stage.channels, stage.keep, chain.scale) for stage in stages]

    def _test(
        self, stops: Stops, chain: Chain, terms: Sequence[Terms] | None, data: Tensor | None, full: Tensor | None
    ) -> None:
        """Test some rows of a layer at every stage."""
        if terms is None:
            for index, part in enumerate(chain.call.sums):
                stops.test(index, chain, part, chain.scale, None, data, full)
            return
        so_far = q = None
        for index, group in enumerate(terms):
            inputs = group.inputs(chain.call.input)
            if self._needs_squares:
                squares = group.squares(inputs)
                q = squares if q is None else squares.add_(q)
            if chain.call.sums:
                stops.test(index, chain, chain.call.sums[index], chain.scale, q, data, full)
            else:  # of terms with the scale in them
                so_far = group.sum(inputs, so_far, so_far)
                stops.test(index, chain, so_far, None, q, data, full)
