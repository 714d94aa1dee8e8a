"""Count the FLOPs of a call."""

from collections.abc import Callable

import torch

from exprune.core.accounting.flop_counter import FlopCounter


def counted(function: Callable, *args: object) -> tuple[int, dict[str, int]]:
    """The FLOPs counted for a call, after checking that they are the same in inference mode."""
    results = []
    for mode in (torch.no_grad, torch.inference_mode):
        flop_counter = FlopCounter()
        with mode():
            flop_counter.begin()
            try:
                function(*args)
            finally:
                flop_counter.end()
        results.append((flop_counter.flops, dict(flop_counter.uncounted)))
    assert results[0] == results[1]
    return results[0]
