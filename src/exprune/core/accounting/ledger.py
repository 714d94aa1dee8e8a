"""What the passes of one run cost so far."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from exprune.core.accounting.flop_counter import FlopCounter
from exprune.core.accounting.flops import FlopReport, SiteFlops
from exprune.core.errors import SettingError

_COUNTED = ("outputs", "pruned_at", "negative", "wrong", "zeros", "row")
_BY_INPUT = ("left", "nonzero", "ranking")
_VERSION = 4  # of what the counts mean


@dataclass
class Ledger:
    """Counts that grow with every batch.

    Attributes:
        sites: of each site that is pruned, by name.
        flop_counter: of the model's own calls.
        zeros: FLOPs of them that multiply weights removed by static pruning.
    """

    sites: dict[str, SiteFlops] = field(default_factory=dict)
    flop_counter: FlopCounter = field(default_factory=FlopCounter)
    zeros: int = 0

    @property
    def flops(self) -> FlopReport:
        """What all passes so far cost, densely and pruned."""
        return FlopReport(
            self.flop_counter.flops, tuple(self.sites.values()), self.zeros, dict(self.flop_counter.uncounted)
        )

    def state_dict(self) -> dict[str, Any]:
        """All counts, to go on with later."""
        sites = {name: {what: getattr(count, what) for what in _COUNTED} for name, count in self.sites.items()}
        for name, count in self.sites.items():
            if count.by_input is not None:
                sites[name] |= {what: getattr(count.by_input, what) for what in _BY_INPUT}
        totals = {"flops": self.flop_counter.flops, "zeros": self.zeros, "uncounted": dict(self.flop_counter.uncounted)}
        return {"version": _VERSION, **totals, "sites": sites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the counts of another run of the same sites and stages.

        Raises:
            SettingError: they were counted by another version of this, in which they may mean something else, or are of
                other sites or stages. Nothing of them is taken then.
        """
        if state.get("version") != _VERSION:
            raise SettingError(f"counts of version {state.get('version')} of exprune's accounting, not {_VERSION}")
        if not _alike(state, self.state_dict() | {"uncounted": dict.fromkeys(state.get("uncounted", {}), 0)}):
            raise SettingError("counts of other sites or stages")
        self.flop_counter.flops, self.zeros = state["flops"], state["zeros"]
        self.flop_counter.uncounted.update(state["uncounted"])
        for name, fields in state["sites"].items():
            for what, value in fields.items():
                count = self.sites[name]
                setattr(count.by_input if what in _BY_INPUT else count, what, value)


def _alike(counts: Any, own: Any) -> bool:
    """Whether both have the same keys and lengths, with numbers in the same places."""
    if isinstance(own, dict):
        return isinstance(counts, dict) and counts.keys() == own.keys() and all(_alike(counts[k], own[k]) for k in own)
    if isinstance(own, list):
        return isinstance(counts, list) and len(counts) == len(own) and all(map(_alike, counts, own))
    return isinstance(counts, int | float | Tensor)
