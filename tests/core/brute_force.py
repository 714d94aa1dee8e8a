"""The method from its definition, one neuron and one term at a time, in float64: slow and obvious.

Nothing here uses the code under test: no convolution, no matrix product, only Python's own numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import torch
from torch import Tensor

# (terms seen, N, a, b + r) -> how far the statistic is above its bound; below 0 the neuron stops.
Gap = Callable[[list[float], int, float, float], float]


def linear_terms(x: Tensor, weight: Tensor) -> Tensor:
    """t_c of every output of a Linear (..., outputs, N)."""
    rows = x.double().reshape(-1, x.shape[-1]).tolist()
    terms = [[[w * v for w, v in zip(ws, row, strict=True)] for ws in weight.double().tolist()] for row in rows]
    return torch.tensor(terms, dtype=torch.float64).view(*x.shape[:-1], *weight.shape)


def conv_terms(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int] | str, dilation: tuple[int, int]
) -> Tensor:
    """t_c of every output of a Conv2d (batch, outputs, height, width, N)."""
    kernel = tuple(weight.shape[-2:])
    if padding == "same":  # the output is as large as the input; an odd extra row goes to the end
        before = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        after = [d * (k - 1) - b for k, d, b in zip(kernel, dilation, before, strict=True)]
    else:
        before = after = [0, 0] if padding == "valid" else list(padding)
    sizes = [
        (x.shape[2 + i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    values, weights = x.double().tolist(), weight.double().tolist()

    def pixel(image: list[list[float]], row: int, column: int) -> float:
        return image[row][column] if 0 <= row < x.shape[2] and 0 <= column < x.shape[3] else 0.0

    def term(b: int, m: int, i: int, j: int, c: int) -> float:
        top, left = i * stride[0] - before[0], j * stride[1] - before[1]
        return sum(
            weights[m][c][u][v] * pixel(values[b][c], top + u * dilation[0], left + v * dilation[1])
            for u, v in product(range(kernel[0]), range(kernel[1]))
        )

    shape = (x.shape[0], weight.shape[0], *sizes, x.shape[1])
    terms = [term(*index) for index in product(*map(range, shape))]
    return torch.tensor(terms, dtype=torch.float64).view(shape)


def mean_term(seen: list[float], total: int, a: float, shift: float) -> float:
    """m = a s / n + (b + r) / N."""
    return a * sum(seen) / len(seen) + shift / total


def variance(seen: list[float], a: float) -> float:
    """v = a^2 (q / n - (s / n)^2), clamped at 0."""
    n = len(seen)
    return max(0.0, a**2 * (sum(t * t for t in seen) / n - (sum(seen) / n) ** 2))


def threshold_gap(tau: float) -> Gap:
    """Threshold stops if m < T."""
    return lambda seen, total, a, shift: mean_term(seen, total, a, shift) - tau


def stats_gap(alpha: float, finite_population: bool = False) -> Gap:
    """StatsTest stops if m / sqrt(v / n) < Phi^-1(alpha); without variance, if m < 0; at alpha = 0, never.

    For a finite population the variance of m is v / (n - 1) * (N - n) / N.
    """

    def gap(seen: list[float], total: int, a: float, shift: float) -> float:
        if alpha == 0:
            return math.inf
        m, v = mean_term(seen, total, a, shift), variance(seen, a)
        n = len(seen)
        of_mean = v / (n - 1) * max(0, total - n) / total if finite_population else v / n
        return m if of_mean == 0 else m / math.sqrt(of_mean) - NormalDist().inv_cdf(alpha)

    return gap


@dataclass
class Expected:
    """What the method does to every output of a layer."""

    stopped: Tensor
    pruned_at: list[int]
    negative: int
    wrong: int
    dense_flops: int
    pruned_flops: int
    nearest: Tensor  # the distance of the last statistic from its bound


def brute_force(
    terms: Tensor,
    scale: Tensor | float,
    shift: Tensor | float,
    weights_per_term: int,
    stages: Sequence[int],
    gap: Gap,
    overhead: Callable[[int], int],
    left: Tensor | None = None,
    gain_ratio: float = 0.5,
) -> Expected:
    """Run the method on ``z = scale * sum(terms) + shift``, with the terms in the order of evaluation.

    ``overhead(n)`` is the cost of the test after n terms. Stages after which no term is left are skipped. ``left`` is
    the number of weights that static pruning left in each term of each output: terms without weights do not count,
    those with few weights come first, and a test must be worthwhile.
    """
    count = terms.shape[-1]
    stages = [n for n in stages if n < count] if left is None else list(stages)
    lefts = [None] * terms[..., 0].numel() if left is None else left.expand(terms.shape).reshape(-1, count).tolist()
    shape = terms.shape[:-1]
    scales = torch.as_tensor(scale, dtype=torch.float64).expand(shape).flatten().tolist()
    shifts = torch.as_tensor(shift, dtype=torch.float64).expand(shape).flatten().tolist()
    pruned_at, stopped, nearest, negative, wrong, dense, spent = [0] * len(stages), [], [], 0, 0, 0, 0
    for t, a, add, sizes in zip(terms.reshape(-1, count).tolist(), scales, shifts, lefts, strict=True):
        positive = a * sum(t) + add > 0
        if sizes is None:
            sizes = [weights_per_term] * count
        else:
            chosen = sorted((c for c in range(count) if sizes[c] > 0), key=lambda c: (sizes[c], c))
            t, sizes = [t[c] for c in chosen], [sizes[c] for c in chosen]
        total = len(t)
        stop, evaluated, near = False, total, math.inf
        for k, n in enumerate(stages):
            if left is not None and (total < n or sum(sizes[n:]) * gain_ratio < n):
                continue
            spent += overhead(n)
            distance = gap(t[:n], total, a, add)
            near = min(near, abs(distance))
            if distance < 0:
                stop, evaluated = True, n
                pruned_at[k] += 1
                break
        spent += 2 * sum(sizes[:evaluated])
        dense += 2 * sum(sizes)
        negative += not positive
        wrong += stop and positive
        stopped.append(stop)
        nearest.append(near)
    return Expected(
        torch.tensor(stopped).view(shape),
        pruned_at,
        negative,
        wrong,
        dense,
        spent,
        torch.tensor(nearest, dtype=torch.float64).view(shape),
    )
