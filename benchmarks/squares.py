"""Sums of squares of a 3x3 convolution's first 32 terms, computed in four ways, for the shapes of VGG11-BN and
ResNet18.

    python benchmarks/squares.py

* channels: one matrix product per channel, squared into the sum (what exprune does)
* offsets:  one small convolution for each offset between two kernel positions, over a product image
* pairs:    one matrix product over the products of all 45 pairs of kernel positions
* grouped:  one grouped convolution that gives every term, which is then squared and summed

Prints processor milliseconds for 2^18 outputs (the fastest of 5), and those of the dense layer.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune.core.calls.layers import LinearCall
from exprune.core.partial_sums.terms import Terms

# Input channels, output channels, output height, stride.
SHAPES = [
    (64, 64, 32, 1),
    (64, 128, 16, 1),
    (64, 128, 16, 2),
    (128, 128, 16, 1),
    (128, 256, 8, 1),
    (128, 256, 8, 2),
    (256, 256, 8, 1),
    (256, 512, 4, 1),
    (256, 512, 4, 2),
    (512, 512, 4, 1),
    (512, 512, 2, 1),
]
N = 32
POSITIONS = [(row, column) for row in range(3) for column in range(3)]


def offsets(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    def overlap(a: Tensor, dy: int, dx: int, first: bool) -> Tensor:
        top, left = (0, max(0, -dx)) if first else (dy, max(0, dx))
        return a[..., top : top + a.shape[-2] - dy, left : left + a.shape[-1] - abs(dx)]

    x, total = F.pad(x, (1,) * 4), 0.0
    for dy, dx in [(0, 0), (0, 1), (0, 2), *((dy, dx) for dy in (1, 2) for dx in range(-2, 3))]:
        image = overlap(x, dy, dx, True) * overlap(x, dy, dx, False)
        both = overlap(weight, dy, dx, True) * overlap(weight, dy, dx, False)
        total = total + F.conv2d(image, both if (dy, dx) == (0, 0) else 2 * both, None, stride)
    return total


def pairs(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    x, size = F.pad(x, (1,) * 4), (x.shape[-1] - 1) // stride + 1
    reach = stride * (size - 1) + 1
    seen = [x[..., i : i + reach : stride, j : j + reach : stride].movedim(1, -1) for i, j in POSITIONS]
    weights = [weight[..., i, j] for i, j in POSITIONS]
    chosen = [(a, b) for a in range(9) for b in range(a, 9)]
    products = torch.cat([seen[a] * seen[b] for a, b in chosen], -1)
    both = torch.cat([weights[a] * weights[b] * (1 if a == b else 2) for a, b in chosen], -1)
    return F.linear(products, both).movedim(-1, 1)


def grouped(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    terms = F.conv2d(x, weight.transpose(0, 1).flatten(0, 1).unsqueeze(1), None, stride, 1, groups=N)
    return terms.unflatten(1, (N, -1)).square().sum(1)


def milliseconds(run: Callable[[], Tensor]) -> float:
    def once() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    once()
    return 1000 * min(once() for _ in range(5))


def main() -> None:
    torch.manual_seed(0)
    print(f"{'shape':>28} {'dense':>8} {'channels':>8} {'offsets':>8} {'pairs':>8} {'grouped':>8}")
    for channels, out, height, stride in SHAPES:
        x = torch.randn(2**18 // (out * height**2), channels, height * stride, height * stride)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(out, channels, 3, 3).contiguous(memory_format=torch.channels_last) / 10
        terms = Terms.of(LinearCall("conv2d", x, weight, weight, None, (stride, stride), (1, 1), (1, 1)), slice(0, N))
        ways = {"channels": lambda terms=terms, x=x: terms.squares(terms.inputs(x))}
        for way in (offsets, pairs, grouped):
            ways[way.__name__] = lambda way=way, x=x[:, :N], w=weight[:, :N], s=stride: way(x, w, s)
        for way in ways.values():
            torch.testing.assert_close(way(), ways["channels"](), rtol=1e-3, atol=1e-3)
        times = [milliseconds(lambda x=x, w=weight, s=stride: F.conv2d(x, w, None, s, 1))]
        times += [milliseconds(way) for way in ways.values()]
        name = f"{channels} -> {out}, {height}x{height}, stride {stride}"
        print(f"{name:>28} " + " ".join(f"{ms:8.1f}" for ms in times), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
