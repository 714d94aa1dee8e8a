"""What the passes of one run cost so far."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from exprune.core.accounting.flops import Flops, SiteFlops
from exprune.core.accounting.tally import FlopTally
from exprune.core.errors import SettingError

_COUNTED = ("outputs", "pruned_at", "negative", "wrong", "zeros", "row")
_BY_INPUT = ("left", "nonzero", "ranking")
_VERSION = 4  # of what the counts mean


@dataclass
class Ledger:
    """Counts that grow with every batch.

    Attributes:
        sites: of each site that is pruned, by name.
        tally: of the model's own calls.
        zeros: FLOPs of them that multiply weights removed by static pruning.
    """

    sites: dict[str, SiteFlops] = field(default_factory=dict)
    tally: FlopTally = field(default_factory=FlopTally)
    zeros: int = 0

    @property
    def flops(self) -> Flops:
        """What all passes so far cost, densely and pruned."""
        return Flops(self.tally.flops, tuple(self.sites.values()), self.zeros, dict(self.tally.uncounted))

    def state_dict(self) -> dict[str, Any]:
        """All counts, to go on with later."""
        sites = {name: {what: getattr(count, what) for what in _COUNTED} for name, count in self.sites.items()}
        for name, count in self.sites.items():
            if count.by_input is not None:
                sites[name] |= {what: getattr(count.by_input, what) for what in _BY_INPUT}
        totals = {"flops": self.tally.flops, "zeros": self.zeros, "uncounted": dict(self.tally.uncounted)}
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
        self.tally.flops, self.zeros = state["flops"], state["zeros"]
        self.tally.uncounted.update(state["uncounted"])
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
