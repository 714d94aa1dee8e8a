"""The kernels alone: one feed-forward layer of a decoding step compared with torch's, by the share of neurons left.

    python benchmarks/ffn.py
    python benchmarks/ffn.py --hidden 2048 --dtype float16 --csv kernels.csv

The layer has four times as many neurons as hidden units. Its first stage evaluates an eighth of the terms, then the
given share of neurons goes on, and all of these are positive. The sides take turns, each on copies of the weights that
together exceed most caches: the kernels, torch, and torch with its weights in huge pages like those of the kernels.
``bound`` is the ratio of the dense layer's bytes to those that must be read. A row has the medians over the rounds.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from processor import processor
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from exprune.fast.layers import Down, Up
from exprune.fast.stages import Stages
from exprune.fast.storage import room

DTYPES = ("float32", "float16", "bfloat16")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[768, 1024, 2048], help="OPT-125M, -350M, -1.3B")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "float16"], choices=["float32", "float16", "bfloat16"]
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--megabytes", type=int, default=400, help="total size of the copies of the weights")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"{processor()}, {options.threads} threads")
    rows = []
    for hidden in options.hidden:
        for dtype in options.dtype:
            layers = made(hidden, getattr(torch, dtype), options.megabytes)
            for share in SHARES:
                rows.append(timed(layers, share, options.rounds))
                print(rows[-1]["text"], flush=True)
    if options.csv:
        table = pd.DataFrame(rows).drop(columns="text")
        table.insert(0, "processor", processor())
        table.insert(1, "threads", options.threads)
        table.round(3).to_csv(options.csv, index=False)


Pair = tuple[nn.Linear, nn.Linear]


def made(hidden: int, dtype: torch.dtype, megabytes: int) -> list[Pair]:
    """Copies of the two layers with a total size in MB."""
    count = max(2, -(-megabytes * 10**6 // (8 * hidden**2 * dtype.itemsize)))
    layers = [(nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)) for _ in range(count)]
    return [(up.to(dtype).eval(), down.to(dtype).eval()) for up, down in layers]


def copied(pairs: list[Pair], huge: bool) -> list[Pair]:
    copies = []
    for pair in pairs:
        up, down = (nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype).eval() for layer in pair)
        for layer, of in zip((up, down), pair, strict=True):
            layer.load_state_dict(of.state_dict())
            if huge:
                layer.weight.data = room(tuple(layer.weight.shape), layer.weight.dtype).copy_(layer.weight.data)
        copies.append((up, down))
    return copies


def timed(layers: list[Pair], share: float, rounds: int) -> dict[str, object]:
    up = layers[0][0]
    hidden, neurons, dtype = up.in_features, up.out_features, up.weight.dtype
    bounds = torch.full((1, neurons), torch.inf)
    bounds[0, torch.randperm(neurons)[: round(share * neurons)]] = -torch.inf
    x = torch.randn(1, hidden).to(dtype)
    ours = copied(layers, huge=False)
    for up, down in ours:
        up.bias.data.fill_(100.0)  # makes all neurons that go on positive
        Up("fc1", up, Stages.below([hidden // 8, hidden - hidden // 8], torch.arange(hidden), bounds))
        Down("fc2", down)
    sides = {"kernels": ours, "torch": layers, "huge": copied(layers, huge=True)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in tqdm(range(rounds + 1), disable=None, leave=False):
        taken = dict.fromkeys(sides, 0.0)
        for pairs in zip(*sides.values(), strict=True):
            for side, (up, down) in zip(sides, pairs, strict=True):
                start = time.perf_counter()
                down(F.relu(up(x)))
                taken[side] += time.perf_counter() - start
        for side in sides:
            seconds[side].append(taken[side] / len(layers))
    rest = {side: times[1:] for side, times in seconds.items()}  # the first round compiles the kernels
    took = rest.pop("kernels")
    of_torch, of_huge = (median(a / b for a, b in zip(theirs, took, strict=True)) for theirs in rest.values())
    read, seconds_each = (1 / 8 + share * 7 / 8 + share) / 2, median(took)
    speed = read * 8 * hidden**2 * dtype.itemsize / seconds_each / 1e9
    text = (
        f"{hidden} x {neurons} {str(dtype).removeprefix('torch.')}, {share:.0%} alive: {of_torch:.2f} x torch, "
        f"{of_huge:.2f} x torch in huge pages, bound {1 / read:.2f}, {1e3 * seconds_each:.2f} ms, {speed:.1f} GB/s"
    )
    row = {"hidden": hidden, "dtype": str(dtype).removeprefix("torch."), "alive": share, "over_torch": of_torch}
    return {**row, "over_torch_in_huge_pages": of_huge, "bound": 1 / read, "gb_per_second": speed, "text": text}


if __name__ == "__main__":
    main()
