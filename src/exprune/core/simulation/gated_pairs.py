"""Products of two layers' outputs, where the zeros of one save work in the other (docs/method.md, section 10)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from exprune.core.accounting.flops import SiteFlops
from exprune.core.partial_sums.input_order import Ranked
from exprune.core.simulation.by_input import weights_evaluated
from exprune.core.simulation.stops import Stops


class GatedPairs:
    """Gated sites whose factor is a site as well: matches the zeros of the gate with the work of the factor.

    Whichever of the two is computed first is stored until the other is computed.
    """

    def __init__(self, sites: Mapping[str, SiteFlops]) -> None:
        pairs = ((name, count.site.gated) for name, count in sites.items())
        linear = {name for name, count in sites.items() if not count.site.spatial_dims}
        self._factors = {name: factor for name, factor in pairs if factor in linear and name in linear}
        self._gates = {factor: name for name, factor in self._factors.items()}
        self._waiting: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}  # of stored gates
        self._sites = sites

    def watches(self, name: str) -> bool:
        return name in self._factors or name in self._gates

    def known(self, factor: str, like: Tensor) -> Tensor | None:
        """The outputs (rows, outputs) of the gate that will multiply a factor; None if they are not computed yet."""
        outputs = self._outputs.get(self._gates.get(factor, ""))
        return outputs if outputs is not None and outputs.shape == like.shape else None

    def note(self, stops: Stops, ranked: Ranked | None, data: Tensor | None) -> Tensor:
        """For some rows of a watched layer: which neurons output 0 (gate), or the FLOPs of each neuron (factor)."""
        if stops.site.name in self._factors:
            zeroed = stops.zeroed()
            return zeroed if data is None else zeroed & data
        return spent(stops, ranked)

    def done(self, name: str, rows: list[Tensor], out: Tensor) -> None:
        """Handle the end of a call of a watched layer, whose outputs are ``out`` (rows, outputs)."""
        gate = name if name in self._factors else self._gates[name]
        noted = torch.cat(rows)
        other = self._waiting.pop(self._factors[gate] if name == gate else gate, None)
        if other is None or other.shape != noted.shape:
            self._waiting[name] = noted
            if name == gate:
                self._outputs[name] = out
            return
        self._outputs.pop(gate, None)
        zeroed, flops = (noted, other) if name == gate else (other, noted)
        self._sites[gate].row = self._sites[gate].row + flops[zeroed].sum(dtype=torch.float64).long()


def spent(stops: Stops, ranked: Ranked | None) -> Tensor:
    """FLOPs of the terms that each neuron of a block has evaluated (rows, outputs), float32, without the tests."""
    plan, stopped = stops.plan, list(stops.so_far())
    if ranked is None:
        each = [torch.as_tensor(stage.flops) for stage in plan.stages]
        flops = torch.as_tensor(plan.dense_flops).to(stopped[0].device).expand_as(stopped[0]).float()
    else:
        nonzero, evaluated = weights_evaluated(ranked, plan, stops.site.weights_per_term)
        each = [2 * nonzero.clamp(max=so_far) for so_far in evaluated]  # zero terms come last
        flops = (2 * nonzero).expand_as(stopped[0]).float()
    for at, so_far in zip(each[::-1], stopped[::-1], strict=True):
        flops = torch.where(so_far, at.to(flops), flops)
    return flops
