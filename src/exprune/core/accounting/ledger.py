"""The ledger of a run: the FLOPs of its passes so far."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from exprune.core.accounting.flop_counter import FlopCounter
from exprune.core.accounting.flops import FlopReport, SiteFlops
from exprune.core.errors import SettingError

_COUNTED = ("outputs", "pruned_at", "negative", "wrong", "zeros", "row")
_BY_INPUT = ("left", "nonzero", "ranking")
_VERSION = 4  # changes when the meaning of the counts changes


@dataclass
class Ledger:
    """Counts that grow with every batch.

    Attributes:
        sites: The counts of each pruned site, by name.
        flop_counter: The counter of the model's own calls.
        zeros: FLOPs of those calls that multiply weights removed by static pruning.
    """

    sites: dict[str, SiteFlops] = field(default_factory=dict)
    flop_counter: FlopCounter = field(default_factory=FlopCounter)
    zeros: int = 0

    @property
    def flops(self) -> FlopReport:
        """FLOPs of all passes so far, dense and pruned."""
        return FlopReport(
            self.flop_counter.flops, tuple(self.sites.values()), self.zeros, dict(self.flop_counter.uncounted)
        )

    def state_dict(self) -> dict[str, Any]:
        """All counts, for `load_state_dict`."""
        sites = {name: {what: getattr(count, what) for what in _COUNTED} for name, count in self.sites.items()}
        for name, count in self.sites.items():
            if count.by_input is not None:
                sites[name] |= {what: getattr(count.by_input, what) for what in _BY_INPUT}
        totals = {"flops": self.flop_counter.flops, "zeros": self.zeros, "uncounted": dict(self.flop_counter.uncounted)}
        return {"version": _VERSION, **totals, "sites": sites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the counts of another run with the same sites and stages.

        Raises:
            SettingError: If the counts are of another version of the accounting, or of other sites or stages. Nothing
                is loaded then.
        """
        if state.get("version") != _VERSION:
            raise SettingError(f"counts of version {state.get('version')} of exprune's accounting, not {_VERSION}")
        if not _alike(state, self.state_dict() | {"uncounted": dict.fromkeys(state.get("uncounted", {}), 0)}):
            raise SettingError("the counts are of other sites or stages")
        self.flop_counter.flops, self.zeros = state["flops"], state["zeros"]
        self.flop_counter.uncounted.update(state["uncounted"])
        for name, fields in state["sites"].items():
            for what, value in fields.items():
                count = self.sites[name]
                setattr(count.by_input if what in _BY_INPUT else count, what, value)


def _alike(counts: Any, own: Any) -> bool:
    """Whether both have the same keys and lengths, and numbers in the same places."""
    if isinstance(own, dict):
        return isinstance(counts, dict) and counts.keys() == own.keys() and all(_alike(counts[k], own[k]) for k in own)
    if isinstance(own, list):
        return isinstance(counts, list) and len(counts) == len(own) and all(map(_alike, counts, own))
    return isinstance(counts, int | float | Tensor)
