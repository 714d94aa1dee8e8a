"""The networks that benchmarks/decode.py decodes: a trained one, or one of a published shape with random weights."""

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from hydra import compose, initialize_config_dir

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported

import torch  # isort: skip
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from exprune.core import CalibratedTest, Dominance, Heuristic, Site, SiteStatistics, find_sites
from exprune.fast import faster
from exprune.fast.storage import room
from exprune.lab.configured import heuristic_of, knob_to_find
from exprune.lab.decoding.engine import texts_of
from exprune.lab.evaluation.head import dominance
from exprune.lab.evaluation.subject import prepare
from exprune.lab.selection.tuning import tuned

SHAPES = {"opt-125m": (768, 12, 12), "opt-350m": (1024, 24, 16), "opt-1.3b": (2048, 24, 32)}


@dataclass
class Case:
    """A network with its sites, tests and head, prompts to decode from, and held-out texts to measure a drop on."""

    network: OPTForCausalLM
    sites: list[Site]
    heuristic: Heuristic
    head: Dominance | None
    prompts: list[Tensor]
    texts: list[tuple[Tensor, Tensor]]
    label: str

    def arms(self, switch: bool = True) -> dict[str, Callable[[], Any]]:
        """Functions that make the context of each arm; ``switch`` is that of `exprune.fast.faster`."""
        arms: dict[str, Callable[[], Any]] = {"eager": contextlib.nullcontext, "dense": contextlib.nullcontext}
        arms["zeros"] = lambda: faster(self.network, self.sites, None, switch=switch)
        arms["stopped"] = arms["eager, stopped"] = lambda: faster(
            self.network, self.sites, self.heuristic, switch=switch
        )
        if self.head is not None:
            arms["head"] = lambda: faster(self.network, self.sites, self.heuristic, self.head, switch)
        return arms


def trained(options: argparse.Namespace) -> Case:
    """The network of the overrides, with its released or newly trained weights."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        optimal = ["exprune=optimal", "exprune.order=layer", "exprune.stages=[64,128,256,512]"]
        given = ["model=opt_wide", *optimal, "head=dominance"]
        cfg = compose("evaluate", [*given, *options.overrides, "logger=none", "overrides=[]", "paths.output_dir=."])
    subject = prepare(cfg, heuristic_of(cfg), ["valid"] if knob_to_find(cfg) else [])
    heuristic, _ = tuned(subject)
    assert heuristic is not None
    head = dominance(cfg, subject.trainer, subject.task, subject.data)
    texts = texts_of(subject.loader("test"))
    long = [ids[: options.prompt] for ids, _ in texts if len(ids) >= options.prompt]
    knob = cfg.exprune.get("knob", "tau")
    label = f"{cfg.model.name} on {cfg.data.name}, {type(heuristic).__name__}, {knob}={getattr(heuristic, knob):.3g}"
    subject.task.eval()
    return Case(subject.task.network.eval(), subject.sites, heuristic, head, long, texts, label)


class AtShare(CalibratedTest):
    """Let the given share of neurons with random weights go on after the first stage."""

    def __init__(self, share: float, stage: int, statistics: dict[str, SiteStatistics]) -> None:
        super().__init__(None, (stage,), statistics)
        self.bound = -NormalDist().inv_cdf(share) * math.sqrt(stage) * _SD

    def margin(self, seen: Any, sd: Tensor, gradient: Tensor | None) -> float:
        return math.inf

    def bounds(self, site: Site, plan: Any, tau: float | None, bias: Tensor) -> Tensor:
        return torch.full((1, site.outputs), self.bound)


_SD = 0.02  # standard deviation of the random weights


def shaped(options: argparse.Namespace) -> Case:
    """Random weights, whose layers read the wanted shares; the first stage has an eighth of the terms."""
    hidden, layers, heads = SHAPES[options.shape]
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, use_cache=True, eos_token_id=None,
    )  # fmt: skip
    network = OPTForCausalLM(config).eval()
    stage = hidden // 8
    share = _left(options.read, "read")
    # The bias that leaves the wanted share of the remaining neurons positive, from a sample of both partial sums.
    early, late = torch.randn(2, 10**6) * torch.tensor([[math.sqrt(stage)], [math.sqrt(hidden - stage)]]) * _SD
    statistics = {}
    unknown = torch.zeros(1, 4 * hidden, dtype=torch.float64)
    heuristic = AtShare(share, stage, statistics)
    totals = torch.where(early >= heuristic.bound, early + late, -torch.inf)
    for name, layer in network.named_modules():
        if name.endswith("fc1"):
            nn.init.normal_(layer.weight, std=_SD)
            nn.init.constant_(layer.bias, -float(totals.quantile(1 - options.positive)))
            statistics[name] = SiteStatistics((stage,), unknown, unknown, unknown + 1)
    prompts = [torch.randint(3, config.vocab_size, (options.prompt,)) for _ in range(options.rounds)]
    sites = find_sites(network, prompts[0][None])
    label = f"{options.shape}'s shape, random weights (densities set, not learned)"
    head = _leading(network.lm_head, stage, _left(options.head_read, "head-read"))
    return Case(network, sites, heuristic, head, prompts, [], label)


def _left(read: float, option: str) -> float:
    """The share of rows left after a first stage of an eighth of the terms, if the share ``read`` is read in total."""
    if not 1 / 8 < read < 1:
        raise SystemExit(f"error: --{option}={read}: must be between 0.125, which the first stage reads, and 1")
    return (read - 1 / 8) / (7 / 8)


def _leading(head: nn.Linear, stage: int, share: float) -> Dominance:
    """Let the given share of logits go on after the first stage, for inputs of size 1."""
    sums = torch.randn(64, head.out_features) * math.sqrt(stage) * _SD
    below = float((sums.amax(1) - sums.quantile(1 - share, dim=1)).mean())  # distance of the threshold from the leader
    tau = 0.001
    same = torch.zeros(1, head.out_features, dtype=torch.float64)
    sd = below / 2 / -NormalDist().inv_cdf(tau)  # so that the width of both bounds together is that distance
    return Dominance(head, SiteStatistics((stage,), same + 1, same, same + sd), tau)


def into_huge_pages(network: nn.Module) -> None:
    """Move every weight into huge pages like those of the kernels, so that no arm is faster only because of this."""
    for parameter in network.parameters():
        parameter.data = room(tuple(parameter.shape), parameter.dtype).copy_(parameter.data)
