"""A change of the outputs that is promised for inputs that nobody has seen (docs/method.md, section 11)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from exprune.api.tradeoff import Observed
from exprune.core.errors import SettingError


@dataclass(frozen=True)
class Promise:
    """A limit that is kept with some probability.

    Attributes:
        price: the highest that is promised. limit: of the mean change. confidence: the probability.
        bound: the least limit that the same inputs would let promise at this price.
        kind: how the test is valid. tried: how many prices were.
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
    """Of each example: what ``kl`` limits, or what ``drop`` does."""
    values = seen.falls if target == "drop" else seen.values
    assert values is not None  # prune asks for a metric with drop
    return values


def promised(
    at: Callable[[float], Observed], prices: Sequence[float], target: str, limit: float, confidence: float
) -> tuple[Promise, Observed]:
    """The highest of the rising prices whose mean change is shown to be within the limit; and what it gave.

    Fixed-sequence testing: the prices were chosen on other inputs, and the first that fails ends it.

    Raises:
        SettingError: not even the lowest is; or scipy is missing.
    """
    try:
        from exprune.api.paired_tests import PairedTest, mean_test
        from exprune.api.sequence import bound, how_many_pass, out_of_reach
    except ImportError as missing:
        raise SettingError(f"confidence={confidence:g}: needs {missing.name}; pip install {missing.name}") from None
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
