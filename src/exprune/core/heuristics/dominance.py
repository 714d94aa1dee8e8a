"""Dominance prediction: of a prediction head only the largest output is wanted (docs/method.md, section 8).

A head is a Linear layer whose outputs (logits) are compared with each other and nothing else. From partial sums of all
of them, those that can no longer become the largest are dropped, in stages.
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

_CHUNK = 2**22  # logits at a time


class _Head:
    """A context that sees every call of a head.

    Attributes:
        rows: bool over the flattened leading dimensions of the head's input; False: no data. None: all are.
    """

    def __init__(self, head: nn.Linear, stages: Sequence[int], order: Tensor | None) -> None:
        if not isinstance(head, nn.Linear):
            raise SettingError(f"a prediction head is a Linear layer, not {type(head).__name__}")
        if head.out_features < 2:
            raise SettingError("a head with one output has no largest one")
        self.head = head
        stages = plain_knob(stages)
        self.stages = tuple(n for n in stages if n < head.in_features)
        if not ascending(self.stages):
            raise SettingError(f"stages={list(stages)}: ascending, from 1 to below the head's {head.in_features} terms")
        self.order = order
        self.rows: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> "_Head":
        def called(head: nn.Linear, args: tuple, kwargs: dict, out: Tensor) -> Tensor | None:
            # What is done here is no part of the model: an ExPrune around it must not count it.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                x = args[0] if args else kwargs["input"]
                return self._called(x, out)

        self._hook = self.head.register_forward_hook(called, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _called(self, x: Tensor, out: Tensor) -> Tensor | None:
        """See a call of the head; what is returned replaces its logits."""
        raise NotImplementedError

    def _prefixes(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """After each stage: its number of terms, and the sums of so many terms, (rows, outputs)."""
        sums: Tensor | float = 0.0
        for start, end in itertools.pairwise((0, *self.stages)):
            terms = slice(start, end) if self.order is None else self.order[start:end].to(x.device)
            sums = sums + F.linear(x[:, terms], self.head.weight[:, terms])
            yield end, sums


class HeadRecorder(_Head):
    """Learns how partial sums foretell each logit, from all that passes through the head inside the context.

    Args:
        stages: terms evaluated before each test, ascending.
        order: of all terms, (N,); None: as they stand.
    """

    def __init__(self, head: nn.Linear, stages: Sequence[int], order: Tensor | None = None) -> None:
        super().__init__(head, stages, order)
        self._moments = Moments()

    def statistics(self) -> SiteStatistics:
        """The lines, as of a site whose neurons are the logits.

        Raises:
            SettingError: there were too few rows.
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
    """Drops logits inside the context, setting them to -inf, and counts what that saves.

    After each stage a logit is dropped where its upper confidence bound lies below the leader's lower one; where one
    alone is left, the row is decided. Every logit that stays keeps its true value.

    Args:
        tau: the risk of each bound, in [0, 0.5]; 0 drops nothing.
        statistics: of :class:`HeadRecorder`, which also says the stages and the order.

    Attributes:
        decided: rows seen. changed: those whose largest logit was dropped.
        dropped: logits dropped at each stage.
        dense_flops, pruned_flops: of the head alone.
    """

    def __init__(self, head: nn.Linear, statistics: SiteStatistics, tau: float) -> None:
        order = statistics.order
        if isinstance(order, str):
            raise SettingError(f"the head's logits are compared after the same terms: no order={order!r}")
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
        """Raises SettingError where ``tau`` is none."""
        real(tau, "tau", "a number in [0, 0.5]", lambda tau: 0 <= tau <= 0.5, "Dominance")

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, offset and margin (stages, outputs): a logit lies below ``slope * sum + offset``, and above that less
        the margin. No stages where nothing is dropped."""
        stages = len(self.stages) if self.tau else 0
        return self._slope[:stages], self._upper[:stages], self._width[:stages]

    @property
    def saved(self) -> float:
        """The fraction of the head's FLOPs that was saved; negative where the tests cost more."""
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
            candidates = alive & (per_row(alive) > 1)  # of rows that are not decided
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
