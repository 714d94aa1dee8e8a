"""Whether a run did what it was planned to do: every site tested as often as it was computed."""

from collections import Counter


class Account:
    """What happened to each site's calls inside a context.

    Attributes:
        computed: calls of the site's layer that were seen, of at least one row.
        tested: those of them that came to the test.
    """

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.tested: Counter[str] = Counter()
        self._faults: dict[str, str] = {}

    def fault(self, name: str, why: str) -> None:
        """Something was not as when the site was found, so that counts or outputs are not those of the method."""
        self._faults.setdefault(name, why)

    def forgive(self) -> None:
        """An exception broke the pass off: calls that have not come to their test never will."""
        self.computed = Counter(self.tested)

    def line(self) -> str | None:
        """The first site that was not tested as planned, and why; None where all were."""
        for name, computed in self.computed.items():
            if (missed := computed - self.tested[name]) and name not in self._faults:
                which = "its call" if computed == 1 else f"{missed} of its {computed} calls"
                self._faults[name] = f"{which} did not reach its activation as when it was found"
        for name, why in self._faults.items():
            more = f" ({len(self._faults) - 1} more sites likewise)" if len(self._faults) > 1 else ""
            return f"{name} was not pruned as planned: {why}{more}"
        return None
