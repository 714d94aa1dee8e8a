"""Tokens per second of greedy decoding at batch 1, from real text. The arms take turns in one process.

    python benchmarks/decode.py exprune.lam=1.33e-9 --json decode.json
    python benchmarks/decode.py --shape opt-1.3b --read 0.5 --positive 0.1 --head-read 0.3

The overrides are those of evaluate.py; the default is opt_wide with exprune=optimal in few stages. The arms are:

* ``eager``: the loop of transformers
* ``dense``: our loop with torch's layers
* ``zeros``: our loop, skipping zeros after ReLUs, which does not change outputs
* ``stopped``: our loop with early stopping, at the setting of the overrides. By default the setting is found on the
  validation split for a drop of 0.1 points, which takes long.
* ``head``: the same with dominance prediction of the largest logit
* ``eager, stopped``: the loop of transformers under ``faster``

All weights are in huge pages in every arm, as those of the kernels are; torch alone requests them only if
THP_MEM_ALLOC_ENABLE=1 is set. Ratios are to ``dense`` of the same round. Their median is printed with a 95 % bootstrap
interval. ``--shape`` uses an OPT of that size with random weights instead. Its fc1 and head read the given shares of
their weights, and the given share of its neurons is positive.
"""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cases import SHAPES, Case, into_huge_pages, shaped, trained
from processor import processor
from tqdm import tqdm

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported

import torch  # isort: skip
from torch import Tensor, nn
from transformers import OPTForCausalLM
from transformers.generation.streamers import BaseStreamer

from exprune.fast.kernels import down
from exprune.fast.storage import room
from exprune.lab.decoding.engine import predictions
from exprune.lab.decoding.loop import Decoder
from exprune.lab.entry import hush_libraries
from exprune.lab.examples.language.tokens import NO_TARGET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of evaluate.py's configuration")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode in each arm and round")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="of the weights")
    parser.add_argument("--drop-tokens", type=int, default=2000, help="test tokens to measure the arms' drop on")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--read", type=float, default=0.5, help="with --shape: share of fc1's weights that is read")
    parser.add_argument("--positive", type=float, default=0.1, help="with --shape: share of positive neurons")
    parser.add_argument(
        "--head-read", type=float, default=0.3, help="with --shape: share of the head's weights that is read"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hush_libraries()
    case = shaped(options) if options.shape else trained(options)
    torch.set_num_threads(options.threads)
    into_huge_pages(case.network.to(getattr(torch, options.dtype)))
    print(f"{case.label}; {processor()}, {options.threads} threads, {case.network.dtype}")
    decoder = Decoder(case.network, room)
    report = measured(case, decoder, options)
    report |= {"label": case.label, "processor": processor(), "threads": options.threads, "bandwidth": bandwidth()}
    report |= {"dtype": str(case.network.dtype).removeprefix("torch.")}
    report["command"] = shlex.join(["python", "benchmarks/decode.py", *sys.argv[1:]]).partition(" --json")[0]
    if case.texts and options.drop_tokens:
        report |= drops(case, decoder, options.drop_tokens)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, allow_nan=False))


def measured(case: Case, decoder: Decoder, options: argparse.Namespace) -> dict[str, Any]:
    arms = case.arms()
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    same: dict[str, list[float]] = {arm: [] for arm in arms}
    layers: dict[str, list[Any]] = {}
    parts: dict[str, dict[str, float]] = {}
    held: dict[str, int] = {}
    decode(decoder, case.prompts[0], 4)
    eager(case.network, case.prompts[0], 4)  # warm-up; its first call is slow
    for index in tqdm(range(options.rounds), disable=None, leave=False):
        prompt, tokens = case.prompts[index % len(case.prompts)], {}
        for arm in list(arms) if index % 2 == 0 else list(arms)[::-1]:
            with arms[arm]() as context:
                if theirs := arm.startswith("eager"):
                    tokens[arm], seconds = eager(case.network, prompt, options.tokens)
                else:
                    tokens[arm], seconds = decode(decoder, prompt, options.tokens)
                speeds[arm].append(options.tokens / seconds)
                if not theirs and index == 0:
                    parts[arm] = by_part(decoder, prompt, options.tokens)
                held[arm] = resident()
            if arm not in ("eager", "dense"):
                layers[arm] = context.layers
        for arm in arms:
            same[arm].append(float((tokens[arm] == tokens["dense"]).float().mean()))
    total = sum(p.numel() for name, p in case.network.named_parameters() if "embed" not in name and p.dim() == 2)
    head = case.network.lm_head.weight
    total += head.numel() if head is case.network.model.decoder.embed_tokens.weight else 0
    size, weights = head.element_size(), sum(p.nbytes for p in case.network.parameters())
    found = {}
    for arm in arms:
        unread = sum((1 - one.density) * one.layer.weight.numel() for one in layers.get(arm, []) if one.kept)
        ratios = [a / b for a, b in zip(speeds[arm], speeds["dense"], strict=True)]
        found[arm] = {
            "ratio": median(ratios),
            "interval": _interval(ratios),
            "same_tokens": float(np.mean(same[arm])),
            "read": 1 - unread / total,
            "gb_per_second": (total - unread) * size * median(speeds[arm]) / 1e9,
            "parts": parts.get(arm, {}),
            "more_memory": (held[arm] - held["dense"]) / weights,
            "layers": [
                {"name": one.name, "read": one.density if one.rows else None, "kernel": one.kept}
                for one in layers.get(arm, [])
            ],
        }
    return {"arms": {arm: median(speeds[arm]) for arm in arms}, "of_arm": found, "rounds": options.rounds}


@torch.inference_mode()
def decode(decoder: Decoder, prompt: Tensor, tokens: int) -> tuple[Tensor, float]:
    """The tokens after a prompt, and the seconds that decoding them took."""
    decoder.reset()
    found = [decoder(prompt).argmax()[None]]
    start = time.perf_counter()
    for _ in range(tokens):
        found.append(decoder(found[-1]).argmax()[None])
    return torch.cat(found), time.perf_counter() - start


class _Clock(BaseStreamer):
    """A streamer that measures the seconds from the first token to the end."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def put(self, value: Tensor) -> None:
        self.told.append(time.perf_counter())

    def end(self) -> None:
        self.seconds = time.perf_counter() - self.told[1]


@torch.inference_mode()
def eager(network: OPTForCausalLM, prompt: Tensor, tokens: int) -> tuple[Tensor, float]:
    """Like `decode`, with transformers. It is timed during one call, as a difference of two calls could be negative."""
    settings: dict[str, Any] = {"attention_mask": torch.ones(1, len(prompt), dtype=torch.long), "do_sample": False}
    settings |= {"use_cache": True, "eos_token_id": None, "pad_token_id": 1, "streamer": (clock := _Clock())}
    found = network.generate(prompt[None], max_new_tokens=tokens + 1, **settings)
    return found[0, len(prompt) :], clock.seconds


def by_part(decoder: Decoder, prompt: Tensor, tokens: int) -> dict[str, float]:
    """Shares of a token's time: attention's projections, fc1, fc2, the head, and everything else."""
    spent = dict.fromkeys(("projections", "fc1", "fc2", "head"), 0.0)
    timed = [(module, "projections") for module in decoder.fused]
    for name, module in decoder.network.named_modules():
        last = name.rpartition(".")[2]
        if last in ("fc1", "fc2", "lm_head", "out_proj"):
            timed.append((module, {"lm_head": "head", "out_proj": "projections"}.get(last, last)))
    with contextlib.ExitStack() as stack:
        for module, part in timed:
            stack.enter_context(_timed(module, part, spent))
        decode(decoder, prompt, 1)
        spent |= dict.fromkeys(spent, 0.0)
        start = time.perf_counter()
        decode(decoder, prompt[:1], tokens)
        seconds = time.perf_counter() - start  # of the first token, including the prompt
    shares = {part: value / seconds for part, value in spent.items()}
    return {**shares, "rest": 1 - sum(shares.values())}


@contextlib.contextmanager
def _timed(module: nn.Module, part: str, spent: dict[str, float]) -> Iterator[None]:
    replaced, forward = "forward" in module.__dict__, module.forward

    def timed(x: Tensor) -> Tensor:
        start = time.perf_counter()
        out = forward(x)
        spent[part] += time.perf_counter() - start
        return out

    module.forward = timed
    yield
    if "forward" in module.__dict__ and module.forward is timed:
        if replaced:
            module.forward = forward
        else:
            del module.forward


def drops(case: Case, decoder: Decoder, tokens: int) -> dict[str, Any]:
    """The drop of the next-token accuracy in each arm, in points, with the kernels on held-out text."""
    found, arms = {}, case.arms(switch=False)
    del arms["eager"], arms["eager, stopped"]
    for arm, context in arms.items():
        with context(), tqdm(total=tokens, desc=f"drop of {arm}", disable=None, leave=False) as bar:
            found[arm] = torch.tensor(list(predictions(decoder, case.texts, tokens, bar)))
    targets = torch.cat([targets for _, targets in case.texts])
    targets = targets[targets != NO_TARGET][: len(found["dense"])]
    right = {arm: (one == targets).double().mean().item() for arm, one in found.items()}
    lost = {arm: 100 * (right["dense"] - value) for arm, value in right.items()}
    changed = {arm: (one != found["dense"]).double().mean().item() for arm, one in found.items()}
    of_dense = {"drop_tokens": len(targets), "accuracy": right["dense"]}
    return {"drop": lost["stopped"], "drops": lost, "changed": changed, **of_dense}


def resident() -> int:
    """Bytes of memory that the process holds, without mapped files; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def bandwidth() -> float:
    """GB/s that one thread reads from a matrix that fits into no cache."""
    weight = np.ones((2**16, 2**10), np.float32)
    h, rows = np.ones(len(weight), np.float32), np.empty(len(weight), np.int32)
    out, into = np.zeros(2**10, np.float32), np.empty(2**10, np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        down(weight, out, rows, h.ctypes.data, into.ctypes.data, 0, len(weight))
        seconds.append(time.perf_counter() - start)
    return weight.nbytes / min(seconds) / 1e9


def show(report: dict[str, Any]) -> None:
    print(f"one thread reads {report['bandwidth']:.1f} GB/s")
    for arm, speed in report["arms"].items():
        of = report["of_arm"][arm]
        low, high = of["interval"]
        parts = ", ".join(f"{part} {share:.0%}" for part, share in of["parts"].items())
        print(
            f"{arm:14} {speed:7.2f} tokens/s  {of['ratio']:.2f} x dense [{low:.2f}, {high:.2f}]  "
            f"reads {of['read']:.0%} at {of['gb_per_second']:.1f} GB/s  {of['same_tokens']:.0%} same tokens  "
            f"{of['more_memory']:+.1%} memory  {parts}"
        )
    for arm, of in report["of_arm"].items():
        kernels = [
            f"{one['name']} {one['read']:.0%}" for one in of["layers"] if one["kernel"] and one["read"] is not None
        ]
        dense = [one["name"] for one in of["layers"] if not one["kernel"]]
        if of["layers"]:
            print(f"{arm}: kernels read {_some(kernels)}{f'; dense was faster at {_some(dense)}' if dense else ''}")
    if "drops" in report:
        lost = ", ".join(
            f"{arm} {points:+.2f} ({report['changed'][arm]:.2%} predicted otherwise)"
            for arm, points in report["drops"].items()
        )
        print(f"drop in points over {report['drop_tokens']:,} tokens of the test split: {lost}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(np.array(values), (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
