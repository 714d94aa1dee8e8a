"""Networks whose layers feed GELU or SiLU, some of them gated: the sites found in them, and pruned runs.

They are small networks with random weights, built from unchanged parts of transformers and torchvision.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torchvision.models
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exprune.core import ExPrune, Optimal, Recorder, Site, SiteStatistics, SquaredGradients, find_sites
from exprune.core.calls.effects import tensors
from tests.conformance.network import scatter
from tests.conformance.networks_transformers import TOKENS, configured

STAGES = (3, 6, 12)

# Of a site: what it feeds, by what that is multiplied, and who reads it.
Sites = dict[str, tuple[str, str | None, str]]


@dataclass(frozen=True)
class Architecture:
    """A network, and what must be found in it.

    Attributes:
        build: Makes the model; skips if the installed version does not have it.
        sites: The sites, determined from its architecture.
        images: Whether it reads images; otherwise it reads tokens.
    """

    build: Callable[[], nn.Module]
    sites: Sites
    images: bool = False

    def inputs(self, count: int) -> Tensor:
        return torch.randn(count, 3, 32, 32) if self.images else torch.randint(3, TOKENS, (count, 6))


def of_transformers(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if not hasattr(transformers, f"{name}Model"):
            pytest.skip(f"this version of transformers has no {name}")
        return configured(name, "Model", **settings)

    return build


def of_torchvision(module: str, make: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if not hasattr(torchvision.models, module):
            pytest.skip(f"this version of torchvision has no {module}")
        return make(getattr(torchvision.models, module))

    return build


def layers(pattern: str, activation: str, gated: str | None, reader: str, count: int = 2) -> Sites:
    """The same entry for each of several layers; ``#`` is replaced by the layer's number."""

    def name(rest: str | None, layer: int) -> str | None:
        return None if rest is None else pattern.replace("#", str(layer)) + rest

    own, gate = gated.split(" * ") if gated and " * " in gated else (gated, None)
    return {f"{name(own, i)}": (activation, name(gate, i), f"{name(reader, i)}") for i in range(count)}


def gated_layers(activation: str) -> Sites:
    return layers("layers.#.mlp.", activation, "gate_proj * up_proj", "down_proj")


def _efficientnet(module: Any) -> nn.Module:
    """A block without an expansion, one that halves the map, and a fused one; the first two have squeezes."""
    blocks = [module.MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), module.MBConvConfig(4, 3, 2, 8, 16, 1, 1.0, 1.0)]
    blocks.append(module.FusedMBConvConfig(4, 3, 1, 16, 16, 1))
    return module.EfficientNet(blocks, 0.1, num_classes=5, last_channel=24)


def _convnext(module: Any) -> nn.Module:
    return module.ConvNeXt([module.CNBlockConfig(8, 12, 1), module.CNBlockConfig(12, None, 1)], num_classes=5)


_SWIN = {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_CONVNEXT = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}

ARCHITECTURES = {
    "Llama": Architecture(of_transformers("Llama"), gated_layers("silu")),
    "Mistral": Architecture(of_transformers("Mistral"), gated_layers("silu")),
    "Qwen2": Architecture(of_transformers("Qwen2"), gated_layers("silu")),
    "Gemma": Architecture(of_transformers("Gemma", head_dim=8), gated_layers("gelu(tanh)")),
    "Phi-3": Architecture(
        of_transformers("Phi3", pad_token_id=0),
        layers("layers.#.mlp.", "silu", "gate_up_proj[0:24] * gate_up_proj[24:48]", "down_proj"),
    ),
    "GPT-2": Architecture(of_transformers("GPT2"), layers("h.#.mlp.", "NewGELUActivation", "c_fc", "c_proj")),
    "BERT": Architecture(
        of_transformers("Bert"), layers("encoder.layer.#.", "gelu", "intermediate.dense", "output.dense")
    ),
    "ALBERT": Architecture(
        of_transformers("Albert"),
        layers("encoder.albert_layer_groups.0.albert_layers.#.", "NewGELUActivation", "ffn", "ffn_output", count=1),
    ),
    "ViT": Architecture(
        of_torchvision("vision_transformer", lambda m: m.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5)),
        layers("encoder.layers.encoder_layer_#.mlp.", "gelu", "0", "3"),
        images=True,
    ),
    "Swin": Architecture(
        of_torchvision(
            "swin_transformer", lambda m: m.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5)
        ),
        layers("features.1.0.mlp.", "gelu", "0", "3", 1) | layers("features.3.0.mlp.", "gelu", "0", "3", 1),
        images=True,
    ),
    "Swin, transformers": Architecture(
        of_transformers("Swin", **_SWIN, encoder_stride=8),
        layers("encoder.layers.#.blocks.0.mlp.", "gelu", "fc1", "fc2"),
        images=True,
    ),
    "ConvNeXt": Architecture(
        of_torchvision("convnext", _convnext),
        layers("features.1.0.block.", "gelu", "3", "5", 1) | layers("features.3.0.block.", "gelu", "3", "5", 1),
        images=True,
    ),
    "ConvNeXt, transformers": Architecture(
        of_transformers("ConvNext", **_CONVNEXT),
        layers("encoder.stages.#.layers.0.", "gelu", "pwconv1", "pwconv2", 4),
        images=True,
    ),
    # Convolutions with a BatchNorm: expansions, which are read by depthwise ones, or by a projection if both are one;
    # and squeezes. The last convolution is read by a pooling.
    "EfficientNet": Architecture(
        of_torchvision("efficientnet", _efficientnet),
        {
            "features.1.0.block.1.fc1": ("silu", None, "features.1.0.block.1.fc2"),
            "features.2.0.block.0.0": ("silu", None, "features.2.0.block.1.0"),
            "features.2.0.block.2.fc1": ("silu", None, "features.2.0.block.2.fc2"),
            "features.3.0.block.0.0": ("silu", None, "features.3.0.block.1.0"),
            "features.4.0": ("silu", None, ""),
        },
        images=True,
    ),
}


@dataclass
class Subject:
    """A network of the table, built and calibrated."""

    architecture: Architecture
    model: nn.Module
    inputs: Tensor
    sites: list[Site]
    statistics: dict[str, SiteStatistics]
    lam: float

    def run(self) -> list[Tensor]:
        with torch.no_grad():
            return list(tensors(self.model(self.inputs)))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """In float64, so that rounding decides nothing; calibrated on random inputs."""
    architecture, usual = ARCHITECTURES[request.param], torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model = scatter(architecture.build())
        sites = find_sites(model, architecture.inputs(2))
        inputs = architecture.inputs(104 if architecture.images else 24)
        with torch.no_grad(), Recorder(sites, STAGES) as recorder:
            model(inputs)
        with SquaredGradients(sites) as gradients:
            out = next(tensors(model(inputs)))
            (out * torch.randn_like(out)).sum().backward()
        model.zero_grad()
        means = gradients.mean()
        statistics = {name: replace(of, gradient=means[name]) for name, of in recorder.statistics().items()}
        yield Subject(architecture, model, architecture.inputs(5), sites, statistics, moderate(sites, statistics))
    finally:
        torch.set_default_dtype(usual)


def moderate(sites: list[Site], statistics: dict[str, SiteStatistics]) -> float:
    """The price at which half the neurons of a usual site are not worth all of their terms."""
    worth = []
    for site in sites:
        if (of := statistics.get(site.name)) is not None and of.gradient is not None:
            worth.append(float((of.gradient / 2 * of.sd[0] ** 2).median()) / site.dense_flops)
    return float(torch.tensor(worth).median())


def test_sites(subject: Subject) -> None:
    """The layers before an activation, with their gates and readers, and the reasons of the others."""
    found = {site.name: site for site in subject.sites}
    eligible = {
        name: (site.activation.name if site.activation else "", site.gated, site.reader or "")
        for name, site in found.items()
        if site.eligible
    }
    assert eligible == subject.architecture.sites
    for name, (_, gated, reader) in subject.architecture.sites.items():
        site = found[name]
        assert not site.relu
        assert site.before_activation
        assert set(site.spared) == {other for other in (gated, reader) if other}
        if gated:
            assert site.spared[gated] == site.dense_flops
            assert (found[gated].terms, found[gated].outputs) == (site.terms, site.outputs)
        if reader and found[reader].kind == "linear":
            assert site.spared[reader] == 2 * found[reader].outputs
            assert found[reader].terms == site.outputs
    assert all("\n" not in site.reason for site in subject.sites if site.reason)


def test_dense_flops(subject: Subject) -> None:
    """A run without a heuristic changes nothing, and counts what PyTorch's counter counts where nothing is fused."""
    want = subject.run()
    with ExPrune(subject.sites, None) as run:
        out = subject.run()
    for mine, theirs in zip(out, want, strict=True):  # attention is fused where nobody looks
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        subject.model(subject.inputs)  # with gradients: attention in one call is not counted
    assert run.flops.dense == run.flops.pruned == counter.get_total_flops()
    assert run.flops.uncounted == {}


@pytest.mark.parametrize("predict", [False, True])
def test_no_price(subject: Subject, predict: bool) -> None:
    """Nothing stops, and only the tests cost."""
    want = subject.run()
    with ExPrune(subject.sites, Optimal(0.0, STAGES, subject.statistics, predict=predict)) as run:
        out = subject.run()
    for mine, theirs in zip(out, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert {count.site.name for count in run.flops.sites} == set(subject.architecture.sites)
    tests = sum(count.outputs * len(count.stages) for count in run.flops.sites)
    assert sum(count.pruned for count in run.flops.sites) == 0
    assert run.flops.pruned == run.flops.dense + tests


@pytest.mark.parametrize("predict", [False, True])
def test_a_moderate_price(subject: Subject, predict: bool) -> None:
    """A run saves FLOPs, stopped zeros reach their reader as zeros, and the context leaves nothing behind."""
    want, state = subject.run(), {name: value.clone() for name, value in subject.model.state_dict().items()}
    zeros, handles = {}, []
    for name, (_, _, reader) in subject.architecture.sites.items():
        if reader:
            zeros[name] = 0

            def count_zeros(_: nn.Module, given: tuple, name: str = name) -> None:
                zeros[name] += int((given[0] == 0).sum())

            handles.append(subject.model.get_submodule(reader).register_forward_pre_hook(count_zeros))
    hooks = hooks_of(subject.model)
    with ExPrune(subject.sites, Optimal(subject.lam, STAGES, subject.statistics, predict=predict)) as run:
        out = subject.run()
    assert hooks_of(subject.model) == hooks
    for handle in handles:
        handle.remove()
    counts = {count.site.name: count for count in run.flops.sites}
    assert all(one.isfinite().all() for one in out)
    assert not all(torch.equal(mine, theirs) for mine, theirs in zip(out, want, strict=True))
    assert 0 < run.flops.pruned < run.flops.dense
    assert math.isclose(run.flops.saved, 1 - run.flops.pruned / run.flops.dense)
    assert sum(int(count.zeros) for count in counts.values()) > 0
    assert zeros == {name: int(counts[name].zeros) for name in zeros}
    for count in counts.values():
        assert int(count.zeros) <= count.pruned if predict else int(count.zeros) == count.pruned
    # As if it had not been.
    again = subject.run()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, want, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in subject.model.state_dict().items())
    assert not any(module.training for module in subject.model.modules())


def hooks_of(model: nn.Module) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
