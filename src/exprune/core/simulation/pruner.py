"""The observer that prunes: it computes layers, and tests them at their activation."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from exprune.core.accounting.ledger import Ledger
from exprune.core.calls.layers import LinearCall
from exprune.core.decisions.choice import Choice
from exprune.core.decisions.table import DecisionTable
from exprune.core.heuristics.heuristic import Heuristic
from exprune.core.partial_sums.input_order import Columns, inputs_at_once
from exprune.core.partial_sums.parts import Parts
from exprune.core.partial_sums.rows import check_rows, rows_for
from exprune.core.partial_sums.terms import Terms
from exprune.core.simulation.blocks import as_rows, chunks, data_mask, same_memory
from exprune.core.simulation.by_input import prune_by_input
from exprune.core.simulation.gated_pairs import GatedPairs
from exprune.core.simulation.stops import Stops
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Observer


class Pruner(Observer):
    """Stop neurons when their chain of operations reaches the activation.

    Args:
        heuristic: The heuristic of the run.
        taus: The setting of each pruned site, by name.
        ledger: Where FLOPs are counted. Its sites are those that are pruned.
        rows: Returns which rows of the current batch are data; see `ExPrune`.
        tables: The decision tables of the heuristic, by site.
        choices: The choices of inputs, by site.
    """

    def __init__(
        self,
        heuristic: Heuristic | None,
        taus: Mapping[str, float | None],
        ledger: Ledger,
        rows: Callable[[], Tensor | None],
        tables: Mapping[str, DecisionTable],
        choices: Mapping[str, Choice],
    ) -> None:
        self._heuristic, self._taus, self._ledger, self._rows = heuristic, taus, ledger, rows
        self._tables, self._choices = tables, choices
        several = heuristic is not None and len(heuristic.stages) > 1
        # With one stage, keep the model's own outputs: replacing them would only change the last bits.
        self._parts = Parts({name: of.plan for name, of in ledger.sites.items()} if several else {})
        self._needs_full = heuristic is not None and heuristic.needs_full
        self._needs_squares = heuristic is not None and heuristic.needs_squares
        self._full: Tensor | None = None  # the pre-activation, if the heuristic needs it
        self._gates = GatedPairs(ledger.sites)

    def compute(self, name: str, call: LinearCall, run: Callable[[], Tensor]) -> tuple[Tensor, LinearCall]:
        """Compute a layer's call; returns its output and the call with its partial sums. The tracer calls this."""
        if self._ledger.flop_counter.counts_all:
            return run(), call
        out, call = self._parts.compute(name, call, run)
        if call.sums:  # these FLOPs bypassed the counter
            self._ledger.flop_counter.flops += out.numel() * self._ledger.sites[name].site.dense_flops
        return out, call

    def before_activation(self, chain: Chain, z: Tensor) -> None:
        if self._needs_full:
            self._full = z.detach().clone()  # the activation may be in place

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        off = torch.autocast(out.device.type, enabled=False)
        with torch.no_grad(), off, self._ledger.flop_counter.paused():
            self._prune(chain, out)
        self._full = None

    def _prune(self, chain: Chain, out: Tensor) -> None:
        """Test all neurons of a call in chunks of rows, count them, and write the outputs of those that stop."""
        assert self._heuristic is not None  # without a heuristic no sites are pruned
        mask, of = self._rows(), self._ledger.sites[chain.name]
        mask = rows_for(mask, out.shape[: out.dim() + chain.call.channel_dim])
        if mask is not None:
            check_rows(mask, chain, out)
        given, shape = out, out.shape
        chain, out = as_rows(chain, out)
        full = None if self._full is None else self._full.reshape(out.shape)
        name = chain.name
        solved = self._tables.get(name), self._choices.get(name)
        terms, stops = self._terms(chain), Stops(self._heuristic, of, self._taus[name], *solved)
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
        if not same_memory(out, given):  # flattening its rows required a copy
            given.copy_(out.view(shape))

    def _terms(self, chain: Chain) -> list[Terms] | None:
        """The terms of each stage; None if their sums are already known and no squares are needed."""
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
            else:  # the scale is already in the terms
                so_far = group.sum(inputs, so_far, so_far)
                stops.test(index, chain, so_far, None, q, data, full)
