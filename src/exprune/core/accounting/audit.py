"""Audit of a run: whether every site was tested as often as its layer was computed."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from exprune.core.calls.effects import tensors
from exprune.core.calls.layers import LinearCall
from exprune.core.discovery.sites import Site
from exprune.core.tracing.chain import Chain
from exprune.core.tracing.observer import Observer


class RunAudit(Observer):
    """Track the calls of each site inside a context.

    Args:
        sites: All sites of the run.
        pruned: The names of the sites that are to be tested.
    """

    def __init__(self, sites: Sequence[Site], pruned: Collection[str]) -> None:
        self._sites: dict[nn.Module, list[Site]] = defaultdict(list)
        for site in sites:
            self._sites[site.module].append(site)
        self._pruned = pruned
        self._computed: Counter[str] = Counter()  # calls with at least one row
        self._tested: Counter[str] = Counter()  # those of them that reached the test
        self._faults: dict[str, str] = {}
        self._seen: list[bool] = []  # for each running module: whether one of its layers was called

    def fault(self, name: str, why: str) -> None:
        """Record that a site behaved differently than when it was found, so counts or outputs may be wrong."""
        self._faults.setdefault(name, why)

    def line(self) -> str | None:
        """A message about the first site that was not tested as planned; None if all were."""
        for name, computed in self._computed.items():
            if (missed := computed - self._tested[name]) and name not in self._faults:
                which = "its call" if computed == 1 else f"{missed} of its {computed} calls"
                self._faults[name] = f"{which} did not reach its activation as when it was found"
        for name, why in self._faults.items():
            more = f" ({len(self._faults) - 1} more sites were not either)" if len(self._faults) > 1 else ""
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
            self.fault(followed[0], "its module ran, but no torch call with its weight was seen")

    def fails(self) -> None:
        self._computed = Counter(self._tested)  # calls that were interrupted will not reach their test

    def in_another_thread(self, module: nn.Module) -> None:
        for site in self._sites[module][:1]:  # modules of activations have no sites
            self.fault(site.name, "its module ran in another thread than the one that entered the context")

    def computed(self, name: str, call: LinearCall, out: Tensor) -> None:
        self._seen[-1:] = [True] if self._seen else []

    def starts(self, chain: Chain, out: Tensor) -> None:
        if chain.name in self._pruned:
            self._computed[chain.name] += bool(out.numel())

    def at_activation(self, chain: Chain, out: Tensor) -> None:
        self._tested[chain.name] += bool(out.numel())

    def escapes(self, chain: Chain, reader: str) -> None:
        if chain.name in self._pruned:  # not for a layer whose parts are sites
            self.fault(chain.name, f"its pre-activation is read by {reader}, not only by its activation")
