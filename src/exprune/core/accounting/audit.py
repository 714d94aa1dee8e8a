"""Whether a run did what it was planned to do: every site tested as often as it was computed."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from exprune.core.calls.effects import tensors
from exprune.core.calls.layers import LinearCall
from exprune.core.discovery.sites import Site
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Observer


class RunAudit(Observer):
    """What happens to each site's calls inside a context.

    Args:
        sites: all of the run.
        pruned: the names of those that are to be tested.
    """

    def __init__(self, sites: Sequence[Site], pruned: Collection[str]) -> None:
        self._sites: dict[nn.Module, list[Site]] = defaultdict(list)
        for site in sites:
            self._sites[site.module].append(site)
        self._pruned = pruned
        self._computed: Counter[str] = Counter()  # calls of at least one row
        self._tested: Counter[str] = Counter()  # those of them that came to the test
        self._faults: dict[str, str] = {}
        self._seen: list[bool] = []  # of each running module: whether it has called one of its layers

    def fault(self, name: str, why: str) -> None:
        """Something was not as when the site was found, so that counts or outputs are not those of the method."""
        self._faults.setdefault(name, why)

    def line(self) -> str | None:
        """The first site that was not tested as planned, and why; None where all were."""
        for name, computed in self._computed.items():
            if (missed := computed - self._tested[name]) and name not in self._faults:
                which = "its call" if computed == 1 else f"{missed} of its {computed} calls"
                self._faults[name] = f"{which} did not reach its activation as when it was found"
        for name, why in self._faults.items():
            more = f" ({len(self._faults) - 1} more sites likewise)" if len(self._faults) > 1 else ""
            return f"{name} was not pruned as planned: {why}{more}"
        return None

    def begins(self, module: nn.Module) -> None:
        self._seen.append(False)

    def ends(self, module: nn.Module, given: tuple, failed: bool) -> None:
        seen = self._seen.pop()
        if failed:
            self.fails()
            return
        if seen:
            return
        followed = [site.name for site in self._sites[module] if site.layer.followed]
        if followed and any(x.numel() for x in tensors(given)):
            self.fault(followed[0], "its module ran, and no torch call with its weight was seen in it")

    def fails(self) -> None:
        self._computed = Counter(self._tested)  # calls that have not come to their test never will

    def in_another_thread(self, module: nn.Module) -> None:
        for site in self._sites[module][:1]:  # none of an activation's
            self.fault(site.name, "its module ran in another thread than the one that entered the context")

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        self._seen[-1:] = [True] if self._seen else []

    def starts(self, chain: Chain, out: Tensor) -> None:
        if chain.name in self._pruned:
            self._computed[chain.name] += bool(out.numel())

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        self._tested[chain.name] += bool(out.numel())

    def escapes(self, chain: Chain, reader: str) -> None:
        if chain.name in self._pruned:  # as a layer of which parts are sites is not
            self.fault(chain.name, f"its pre-activation is read by {reader}, not only by its activation")
