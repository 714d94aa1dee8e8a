"""What is counted of a call."""

from collections.abc import Callable

import torch

from exprune.core.accounting.tally import FlopTally


def counted(function: Callable, *args: object) -> tuple[int, dict[str, int]]:
    """What is counted of a call, with and without inference mode the same."""
    results = []
    for mode in (torch.no_grad, torch.inference_mode):
        tally = FlopTally()
        with mode():
            tally.begin()
            try:
                function(*args)
            finally:
                tally.end()
        results.append((tally.flops, dict(tally.uncounted)))
    assert results[0] == results[1]
    return results[0]
