"""A guaranteed limit on the change of the outputs for unseen inputs (docs/method.md, section 11)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from exprune.api.tradeoff import Observed
from exprune.core.errors import SettingError


@dataclass(frozen=True)
class Promise:
    """A limit on the mean change that holds with a given probability.

    Attributes:
        price: The highest price for which the limit is guaranteed.
        limit: The limit of the mean change.
        confidence: The probability that the limit holds.
        bound: The smallest limit that the same inputs would guarantee at this price.
        kind: When the test is valid, in a few words.
        tried: The number of prices that were tested.
    """

    price: float
    limit: float
    confidence: float
    bound: float
    kind: str
    tried: int

    def __str__(self) -> str:
        return (
            f"with {self.confidence:.4g} probability the mean change on further inputs like these is at most "
            f"{self.limit:g} (bound {self.bound:.3g}; {self.kind})"
        )


def changes(seen: Observed, target: str) -> Tensor:
    """The quantity of each example that the target limits: the fall of the metric for ``drop``, else the change."""
    values = seen.falls if target == "drop" else seen.values
    assert values is not None  # prune requires a metric with drop
    return values


def promised(
    at: Callable[[float], Observed], prices: Sequence[float], target: str, limit: float, confidence: float
) -> tuple[Promise, Observed]:
    """Find the highest price whose mean change is shown to be within the limit.

    This is fixed-sequence testing: the prices were chosen on other inputs, and testing ends at the first that fails.

    Args:
        at: Measures a price.
        prices: The prices to test, ascending.
        target: ``"kl"`` or ``"drop"``.
        limit: The limit of the mean change.
        confidence: The probability that the limit must hold with.

    Returns:
        The guarantee, and what was observed at its price.

    Raises:
        SettingError: If not even the lowest price passes, or if scipy is not installed.
    """
    try:
        from exprune.api.paired_tests import PairedTest, mean_test
        from exprune.api.sequence import bound, how_many_pass, out_of_reach
    except ImportError as missing:
        raise SettingError(f"confidence={confidence:g} needs {missing.name}; pip install {missing.name}") from None
    seen: list[Observed] = []

    def evidence() -> Iterator[PairedTest]:
        for price in prices:
            seen.append(at(price))
            values = changes(seen[-1], target).double().cpu().numpy()
            inputs = seen[-1].inputs.numpy()
            grouped = len(inputs) == len(values) and len(set(inputs.tolist())) < len(values)
            yield mean_test(values, inputs if grouped else None, "inputs")

    error = 1 - confidence
    passed, test = how_many_pass(evidence(), limit, error)
    if not passed:
        count = len(changes(seen[0], target))
        first, setting = f"price={prices[0]:.3g}", f"{target}={limit:g} with confidence={confidence:g}"
        raise out_of_reach(test, limit, error, count, "example", first, setting)
    least = bound(test, error, max(1.0, 2 * limit))
    return Promise(prices[passed - 1], limit, confidence, least, test.kind, len(seen)), seen[passed - 1]
