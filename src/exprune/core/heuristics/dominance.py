"""Dominance prediction: compute only the largest output of a prediction head (docs/method.md, section 8).

A head is a Linear layer whose outputs (logits) are only compared with each other. Partial sums of all logits are
computed in stages, and logits that can no longer become the largest are dropped.
"""

import itertools
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core.accounting.plan import ascending
from exprune.core.calibration.lines import Moments, SiteStatistics, floored
from exprune.core.errors import SettingError
from exprune.core.partial_sums.elementwise import per_row
from exprune.core.partial_sums.rows import data_rows
from exprune.core.settings import plain, plain_knob, real

TEST_FLOPS = 5  # slope * s + upper offset, the lower bound from that, its maximum, the comparison

_CHUNK = 2**22  # logits processed at a time


class _Head:
    """Context manager that hooks every call of a head.

    Attributes:
        rows: A bool tensor over the flattened leading dimensions of the head's input, False for padding. None means
            that all rows are data.
    """

    def __init__(self, head: nn.Linear, stages: Sequence[int], order: Tensor | None) -> None:
        if not isinstance(head, nn.Linear):
            raise SettingError(f"a prediction head is a Linear layer, not {type(head).__name__}")
        if head.out_features < 2:
            raise SettingError("the head has one output; dominance prediction compares at least two")
        self.head = head
        stages = plain_knob(stages)
        self.stages = tuple(n for n in stages if n < head.in_features)
        if not ascending(self.stages):
            raise SettingError(
                f"stages={list(stages)}: must be ascending, from 1 to below the head's {head.in_features} terms"
            )
        self.order = order
        self.rows: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> "_Head":
        def called(head: nn.Linear, args: tuple, kwargs: dict, out: Tensor) -> Tensor | None:
            # This work is not part of the model: an enclosing ExPrune must not count it.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                x = args[0] if args else kwargs["input"]
                return self._called(x, out)

        self._hook = self.head.register_forward_hook(called, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _called(self, x: Tensor, out: Tensor) -> Tensor | None:
        """Handle a call of the head. A returned tensor replaces its logits."""
        raise NotImplementedError

    def _prefixes(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield after each stage the number of terms and their sums (rows, outputs)."""
        sums: Tensor | float = 0.0
        for start, end in itertools.pairwise((0, *self.stages)):
            terms = slice(start, end) if self.order is None else self.order[start:end].to(x.device)
            sums = sums + F.linear(x[:, terms], self.head.weight[:, terms])
            yield end, sums


class HeadRecorder(_Head):
    """Measure how partial sums predict each logit, on everything that passes through the head inside the context.

    Args:
        head: The prediction head.
        stages: How many terms are evaluated before each test, ascending.
        order: The order of all terms (N,); None keeps the order of the input.

    Raises:
        SettingError: If the head is not a Linear layer with at least two outputs, or if the stages do not fit it.

    Example:
        ```python
        with torch.no_grad(), HeadRecorder(model.lm_head, [64, 256]) as recorder:
            for batch in batches:
                model(**batch)
        statistics = recorder.statistics()
        ```
    """

    def __init__(self, head: nn.Linear, stages: Sequence[int], order: Tensor | None = None) -> None:
        super().__init__(head, stages, order)
        self._moments = Moments()

    def statistics(self) -> SiteStatistics:
        """The regression lines of the logits, in the format of a site's statistics.

        Returns:
            The statistics that `Dominance` takes.

        Raises:
            SettingError: If fewer than 100 rows were seen.
        """
        return SiteStatistics.of(self._moments, self.stages, "the head", self.order)

    def _called(self, x: Tensor, out: Tensor) -> None:
        x, full = (data_rows(values, -1, self.rows) for values in (x, out))
        step = max(1, _CHUNK // self.head.out_features)
        for rows, logits in zip(x.split(step), full.split(step), strict=True):
            terms = logits if self.head.bias is None else logits - self.head.bias
            terms, rows = self._moments.finite(terms, rows)
            self._moments.add(len(terms), ((sums, terms) for _, sums in self._prefixes(rows)))


class Dominance(_Head):
    """Drop logits that cannot be the largest inside the context, and count the FLOPs that this saves.

    After each stage, a logit is dropped if its upper confidence bound is below the largest lower bound. A row is
    decided once a single logit is left. Dropped logits are set to ``-inf``; the others keep their exact value.

    Args:
        head: The prediction head.
        statistics: The result of `HeadRecorder.statistics`, which also contains the stages and the order.
        tau: The error probability of each bound, in [0, 0.5]; 0 drops nothing.

    Attributes:
        decided: The number of rows seen.
        changed: The number of rows whose largest logit was dropped.
        dropped: The number of logits dropped at each stage.
        dense_flops: FLOPs of the head without dropping.
        pruned_flops: FLOPs of the head with dropping, including the tests.

    Raises:
        SettingError: If ``tau`` is out of range, or if the statistics do not fit the head.

    Example:
        ```python
        with torch.no_grad(), Dominance(model.lm_head, statistics, tau=0.001) as dominance:
            tokens = model(**batch).logits.argmax(-1)
        print(dominance.saved)
        ```
    """

    def __init__(self, head: nn.Linear, statistics: SiteStatistics, tau: float) -> None:
        order = statistics.order
        if isinstance(order, str):
            raise SettingError(f"order={order!r} of the head's statistics: all logits must share one order of terms")
        super().__init__(head, statistics.stages, order)
        self.check_tau(tau)
        if statistics.slope.shape[1] != head.out_features:
            raise SettingError(
                f"statistics of {statistics.slope.shape[1]} logits, but the head has {head.out_features}"
            )
        self.tau = plain(tau)
        self.decided = self.changed = self.dense_flops = self.pruned_flops = 0
        self.dropped = [0] * len(self.stages)
        bias = 0 if head.bias is None else head.bias.detach().double()
        width = floored(statistics.sd) * (-NormalDist().inv_cdf(tau) if tau else 0)
        self._slope, self._upper, self._width = statistics.slope, statistics.offset + bias + width, 2 * width

    @staticmethod
    def check_tau(tau: float) -> None:
        """Raise a SettingError unless ``tau`` is a number in [0, 0.5]."""
        real(tau, "tau", "a number in [0, 0.5]", lambda tau: 0 <= tau <= 0.5, "Dominance")

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, offset and margin of the bounds, each (stages, outputs).

        A logit is below ``slope * sum + offset``, and above that value minus the margin. There are no stages if nothing
        is dropped.
        """
        stages = len(self.stages) if self.tau else 0
        return self._slope[:stages], self._upper[:stages], self._width[:stages]

    @property
    def saved(self) -> float:
        """The share of the head's FLOPs that was saved. It is negative if the tests cost more than they save."""
        return 1 - self.pruned_flops / self.dense_flops if self.dense_flops else 0.0

    def _called(self, x: Tensor, out: Tensor) -> Tensor:
        x = x.reshape(-1, x.shape[-1])
        logits = out.clone().reshape(-1, out.shape[-1])
        keep = torch.arange(len(x), device=x.device) if self.rows is None else self.rows.flatten().nonzero().squeeze(1)
        for rows in keep.to(x.device).split(max(1, _CHUNK // self.head.out_features)):
            logits[rows] = self._decide(x[rows], logits[rows])
        return logits.view_as(out)

    def _decide(self, x: Tensor, logits: Tensor) -> Tensor:
        total = self.head.in_features
        self.decided += len(x)
        self.dense_flops += logits.numel() * 2 * total
        alive = torch.ones_like(logits, dtype=torch.bool)
        before = 0
        for stage, (n, sums) in enumerate(self._prefixes(x)):
            candidates = alive & (per_row(alive) > 1)  # logits of rows that are not decided
            self.pruned_flops += int(candidates.sum()) * (2 * (n - before) + TEST_FLOPS)
            before = n
            if self.tau:
                slope, upper, width = (v[stage].to(sums) for v in (self._slope, self._upper, self._width))
                high = sums * slope + upper
                leader = (high - width).masked_fill(~candidates, -torch.inf).amax(1, keepdim=True)
                drop = candidates & (high < leader)
                self.dropped[stage] += int(drop.sum())
                alive &= ~drop
        candidates = alive & (per_row(alive) > 1)
        self.pruned_flops += int(candidates.sum()) * 2 * (total - before)
        left = logits.masked_fill(~alive, -torch.inf)
        self.changed += int((left.argmax(1) != logits.argmax(1)).sum())
        return left
