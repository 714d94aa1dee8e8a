"""Which layers are found in models as their authors wrote them, and why the others are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch_geometric.data import Batch, Data
from torchvision.models import mobilenet_v2, resnet18, resnet50, vgg11_bn
from transformers import OPTConfig, OPTForCausalLM

from exprune.core import ExPrune, SettingError, Site, StatsTest, Threshold, find_sites
from exprune.lab.examples.molecules.gcn import GCN
from tests.core.brute_force import brute_force, conv_terms, linear_terms, threshold_gap
from tests.core.networks import by_name, counts, pruned_pass, reason_of, scramble


def eligible(sites: list[Site]) -> list[str]:
    return [site.name for site in sites if site.eligible]


def feeding_a_relu(sites: list[Site]) -> list[str]:
    return [site.name for site in sites if site.relu]


def complete(model: nn.Module, sites: list[Site]) -> bool:
    """Every Linear and Conv2d is listed once, as eligible or with a reason in one line."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert sorted(site.name for site in sites if site.name in layers) == sorted(layers)
    for site in sites:
        if site.name not in layers:
            assert site.reason and "\n" not in site.reason
            continue
        layer = layers[site.name]
        assert site.module is layer
        assert site.kind == ("linear" if isinstance(layer, nn.Linear) else "conv2d")
        assert site.terms == layer.weight.shape[1]
        assert site.weights_per_term == layer.weight[0, 0].numel()
        assert site.dense_flops == 2 * layer.weight[0].numel()
        assert site.eligible == (site.reason is None)
        assert site.reason is None or (site.reason and "\n" not in site.reason)
        assert site.relu or not site.eligible
    return True


# Models of others, unmodified


def without_values(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose values do not matter, without its slow initialisation."""
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu").eval()


def test_resnet18() -> None:
    model = resnet18().eval()
    sites = find_sites(model, torch.randn(1, 3, 32, 32))
    assert complete(model, sites)
    assert len(sites) == 21
    found = by_name(sites)
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    body = [f"{block}.{conv}" for block in blocks for conv in ("conv1", "conv2")]
    assert feeding_a_relu(sites) == ["conv1", *body]
    assert eligible(sites) == body
    assert [site.name for site in sites if site.residual] == [f"{block}.conv2" for block in blocks]
    assert "raw input" in found["conv1"].reason
    assert "3 terms" in found["conv1"].reason
    for stage in range(2, 5):
        shortcut = found[f"layer{stage}.0.downsample.0"]
        assert "shortcut" in shortcut.reason
        assert f"layer{stage}.0.conv2" in shortcut.reason
    assert "not an activation" in found["fc"].reason
    assert {site.spatial for site in sites} == {1}


def test_resnet50() -> None:
    """The shortcut has more terms than conv3 in every stage but the first, and is still recognised as the shortcut."""
    model = without_values(resnet50)
    sites = find_sites(model, torch.randn(1, 3, 32, 32))
    assert complete(model, sites)
    found = by_name(sites)
    blocks = [f"layer{s}.{b}" for s, count in enumerate((3, 4, 6, 3), start=1) for b in range(count)]
    assert eligible(sites) == [f"{block}.conv{i}" for block in blocks for i in (1, 2, 3)]
    assert [site.name for site in sites if site.residual] == [f"{block}.conv3" for block in blocks]
    assert feeding_a_relu(sites) == ["conv1", *eligible(sites)]
    for stage in range(1, 5):
        assert f"layer{stage}.0.conv3" in found[f"layer{stage}.0.downsample.0"].reason
    assert found["layer2.0.downsample.0"].terms > found["layer2.0.conv3"].terms


def test_vgg11_bn() -> None:
    model = without_values(vgg11_bn)
    sites = find_sites(model, torch.randn(1, 3, 32, 32))
    assert complete(model, sites)
    convolutions = [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]
    assert feeding_a_relu(sites) == [*convolutions, "classifier.0", "classifier.3"]
    assert eligible(sites) == [*convolutions[1:], "classifier.0", "classifier.3"]
    found = by_name(sites)
    assert "raw input" in found["features.0"].reason
    assert "not an activation" in found["classifier.6"].reason
    assert found["classifier.0"].spatial == 49
    assert [site.spatial for site in sites if site.name != "classifier.0"] == [1] * 10
    order = found["classifier.0"].order()
    assert torch.equal(order.sort().values, torch.arange(25088))
    assert len(set((order[:32] // 49).tolist())) == len(set((order[:32] % 49).tolist())) == 32


def test_mobilenet_v2() -> None:
    """ReLU6 after expansions and depthwise convolutions; linear bottlenecks, added to each other without a ReLU."""
    model = without_values(mobilenet_v2)
    sites = find_sites(model, torch.randn(1, 3, 32, 32))
    assert complete(model, sites)
    grouped = [site.name for site in sites if site.kind == "conv2d" and site.module.groups != 1]
    expansions = [f"features.{block}.conv.0.0" for block in range(2, 18)]
    assert eligible(sites) == [*expansions, "features.18.0"]
    assert set(feeding_a_relu(sites)) == {"features.0.0", *expansions, *grouped, "features.18.0"}
    assert all("grouped" in by_name(sites)[name].reason for name in grouped)
    assert not any(site.residual for site in sites)


def test_pytorch_s_own_transformer_layer() -> None:
    """Its fused path is not taken while its calls are watched."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    sites = find_sites(model, x)
    assert complete(model, sites)
    assert eligible(sites) == ["linear1"]
    (count,) = pruned_pass(model, sites, StatsTest(0.3, n=4), x).flops.sites
    assert 0 < count.pruned < count.outputs == 2 * 5 * 16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_opt(attention: str) -> None:
    config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=20,
        attn_implementation=attention,
    )
    model = OPTForCausalLM(config).eval()
    tokens = torch.randint(2, 50, (2, 7))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    sites = find_sites(model, tokens, attention_mask=mask)
    assert complete(model, sites)
    expected = [f"model.decoder.layers.{layer}.fc1" for layer in range(3)]
    assert eligible(sites) == feeding_a_relu(sites) == expected
    assert not any(site.residual for site in sites)
    run = ExPrune(sites, StatsTest(0.3, n=4), rows=mask)
    with torch.no_grad(), run:
        model(tokens, attention_mask=mask)
    assert [count.outputs for count in run.flops.sites] == [11 * 24] * 3
    assert all(0 < count.pruned < count.outputs for count in run.flops.sites)


def test_gcn() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for nodes in (3, 5):
        ring = torch.arange(nodes)
        edges = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
        graphs.append(
            Data(
                x=torch.randint(2, (nodes, 9), generator=generator),
                edge_index=edges,
                edge_attr=torch.randint(2, (2 * nodes, 3), generator=generator),
            )
        )
    batch = Batch.from_data_list(graphs)
    model = scramble(GCN(hidden=40).double())
    sites = find_sites(model, batch)
    assert complete(model, sites)
    assert eligible(sites) == feeding_a_relu(sites) == [f"convolutions.{i}.linear" for i in range(5)]
    assert {site.terms for site in sites} == {40}
    together = pruned_pass(model, sites, StatsTest(0.2), batch)
    assert counts(together) == counts(
        pruned_pass(model, sites, StatsTest(0.2), *(Batch.from_data_list([graph]) for graph in graphs))
    )
    assert all(0 < count.pruned < count.outputs == 8 * 40 for count in together.flops.sites)


# Spellings of ReLU


class Shared(nn.Module):
    """One ReLU module used after two layers; ``layer`` is the second."""

    def __init__(self, relu: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.relu = nn.Linear(2, 6), nn.Linear(6, 5), relu

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layer(self.relu(self.stem(x))))


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu(inplace)": lambda z: F.relu(z, inplace=True),
    "F.relu(input=)": lambda z: F.relu(input=z),
    "F.relu_": F.relu_,
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda z: z.relu(),
    "Tensor.relu_": lambda z: z.relu_(),
    "relu_, returned object unused": lambda z: (z.relu_(), z)[1],
    "Tensor.clamp(min)": lambda z: z.clamp(min=0),
    "Tensor.clamp(0)": lambda z: z.clamp(0),
    "Tensor.clamp(0.0, None)": lambda z: z.clamp(0.0, None),
    "Tensor.clamp_(min)": lambda z: z.clamp_(min=0),
    "torch.clamp": lambda z: torch.clamp(z, min=0.0),
    "Tensor.clip": lambda z: z.clip(min=0),
    "Tensor.clamp_min": lambda z: z.clamp_min(0),
    "Tensor.clamp_min_": lambda z: z.clamp_min_(0),
    "torch.clamp_min": lambda z: torch.clamp_min(z, 0),
    "torch.maximum": lambda z: torch.maximum(z, torch.zeros(())),
    "torch.maximum(zeros_like)": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "Tensor.maximum": lambda z: z.maximum(torch.zeros_like(z)),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6(inplace)": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "nn.Hardtanh(0, 6)": nn.Hardtanh(0.0, 6.0),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_spellings_of_relu(spelling: str) -> None:
    torch.manual_seed(0)
    relu = RELUS[spelling]
    model = Shared(relu).double().eval()
    with torch.no_grad():
        model.layer.weight.mul_(5)
    x = 10 * torch.randn(30, 2, dtype=torch.float64)
    sites = find_sites(model, x)
    assert eligible(sites) == ["layer"]
    with torch.no_grad():
        hidden = relu(model.stem(x))
        z = model.layer(hidden)
        terms = linear_terms(hidden, model.layer.weight)
        expected = brute_force(terms, 1.0, model.layer.bias, 1, (3,), threshold_gap(-0.1), lambda n: 1)
        dense = z.clamp(0, 6) if "6" in spelling else z.clamp(min=0)
        run = ExPrune(sites, Threshold(-0.1, n=3))
        with run:
            out = model(x)
    assert torch.equal(out, torch.where(expected.stopped, 0.0, dense))
    (count,) = run.flops.sites
    assert (count.pruned, int(count.negative)) == (int(expected.stopped.sum()), expected.negative)
    assert 0 < int(count.wrong) == expected.wrong
    if "6" in spelling:
        assert (z > 6).any()


NO_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "clamp(min=-1)": lambda z: z.clamp(min=-1),
    "clamp(min=1)": lambda z: z.clamp(min=1),
    "clamp(max=0)": lambda z: z.clamp(max=0),
    "clamp_min(0.1)": lambda z: z.clamp_min(0.1),
    "maximum(1)": lambda z: torch.maximum(z, torch.ones(())),
    "maximum(z, -z)": lambda z: torch.maximum(z, -z),
    "minimum": lambda z: torch.minimum(z, torch.zeros(())),
    "hardtanh": F.hardtanh,
    "softmax": lambda z: z.softmax(-1),
    "abs": torch.abs,
    "prelu": lambda z: F.prelu(z, torch.tensor(0.1)),
    "batch norm of other channels": lambda z: F.relu(F.batch_norm(z[None], torch.zeros(6), torch.ones(6))[0]),
    "-z": lambda z: F.relu(-z),
    "z + 2 z": lambda z: F.relu(torch.add(z, z.detach(), alpha=2)),
    "z + 2": lambda z: F.relu(torch.add(z, torch.ones(()), alpha=2)),
    "z + r into another tensor": lambda z: F.relu(torch.add(z, torch.ones(()), out=torch.empty(6, 5))),
    "1 - z": lambda z: F.relu(1 - z),
    "z + z": lambda z: F.relu(z + z),
    "view": lambda z: F.relu(z.view(-1)),
    "transpose": lambda z: F.relu(z.T),
    "slice": lambda z: F.relu(z[:, 1:]),
    "cat": lambda z: F.relu(torch.cat([z, z])),
    "z broadcast": lambda z: F.relu(z + torch.ones(3, 1, 1)),
    "neg_": lambda z: F.relu(z.neg_()),
    "setitem": lambda z: (z.__setitem__(0, 1.0), F.relu(z))[1],
    "setitem syntax": lambda z: (setitem(z), F.relu(z))[1],
    "fill_": lambda z: F.relu(z.fill_(1.0)),
    "in-place change of a view": lambda z: (z[0].mul_(2), F.relu(z))[1],
    "in-place change of z.data": lambda z: (z.data.mul_(2), F.relu(z))[1],
}


def setitem(z: Tensor) -> None:
    z[0] = 1.0


@pytest.mark.parametrize("spelling", NO_ACTIVATIONS)
def test_what_is_no_activation_of_the_pre_activation_gives_a_reason(spelling: str) -> None:
    torch.manual_seed(0)
    model = Shared(lambda z: z)
    model.stem = nn.Linear(2, 6)
    function = NO_ACTIVATIONS[spelling]
    model.forward = lambda x: function(model.layer(F.relu(model.stem(x))))
    x = torch.randn(6, 2)
    sites = find_sites(model, x)
    assert complete(model, sites)
    assert eligible(sites) == []
    assert "\n" not in reason_of(model, "layer", x)


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh(), nn.Softsign()])
def test_another_activation_is_named(module: nn.Module) -> None:
    reason = reason_of(nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 5), module), "1", torch.randn(3, 2))
    assert type(module).__name__.lower() in reason or "abs" in reason


class Lambda(nn.Module):
    """Wraps a function in a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


# Who else reads the pre-activation


class Model(nn.Module):
    """A stem and two layers of one size; ``body(model, hidden)`` connects them."""

    def __init__(self, body: Callable[["Model", Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, self.stem(x).relu())


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def relu_and_more(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    return F.relu(z) + z


def relu_in_place_after_a_read(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    mean = z.mean()
    return F.relu_(z) + mean


def read_by_a_layer(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    return F.relu(z) + model.b(z)


def read_before_the_addition(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    return F.relu(z + h) + z.sum()


def read_after_the_addition(model: Model, h: Tensor) -> Tensor:
    z = model.a(h) + h
    return F.relu(z) * z.sigmoid()


def two_relus(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    return F.relu(z) + F.relu(z + 1)


def view_elsewhere(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    return F.relu(z).sum() + z.view(-1)[0]


def returned(model: Model, h: Tensor) -> tuple[Tensor, Tensor]:
    z = model.a(h)
    return F.relu(z), z


def returned_inside(model: Model, h: Tensor) -> dict[str, Any]:
    z = model.a(h)
    return {"out": F.relu(z), "more": [{"z": z}]}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (relu_and_more, ""),
        (relu_in_place_after_a_read, "mean"),
        (read_by_a_layer, "linear"),
        (read_before_the_addition, "sum"),
        (read_after_the_addition, "sigmoid"),
        (two_relus, ""),
        (view_elsewhere, "view"),
        (returned, "output"),
        (returned_inside, "output"),
    ],
)
def test_a_pre_activation_that_is_read_elsewhere(body: Callable, shown: str) -> None:
    reason = reason_of(Model(body), "a", X)
    assert "read" in reason
    assert shown in reason


def read_after_in_place_relu(model: Model, h: Tensor) -> Tensor:
    z = model.a(h)
    F.relu_(z)
    return z + z.mean()


def identity_ops(model: Model, h: Tensor) -> Tensor:
    z = F.dropout(model.a(h).contiguous().to(torch.float32), 0.5, model.training)
    assert z.shape[0] == z.size(0) == len(z)
    assert z.dtype == torch.float32
    return F.relu(nn.Identity()(z))


def sum_with_a_number(model: Model, h: Tensor) -> Tensor:
    return F.relu(-0.5 + model.a(h) + 0.25)


def residual_used_later(model: Model, h: Tensor) -> Tensor:
    return F.relu(model.a(h) + h) + h


def in_chain(model: Model, h: Tensor) -> Tensor:
    return F.relu(h + model.b(F.relu(model.a(h))))


@pytest.mark.parametrize(
    ("body", "names", "residual"),
    [
        (read_after_in_place_relu, ["a"], []),
        (identity_ops, ["a"], []),
        (sum_with_a_number, ["a"], []),
        (residual_used_later, ["a"], ["a"]),
        (in_chain, ["a", "b"], ["b"]),
    ],
)
def test_what_does_not_stand_in_the_way(body: Callable, names: list[str], residual: list[str]) -> None:
    model = Model(body).eval()
    sites = find_sites(model, X)
    assert eligible(sites) == names
    assert [site.name for site in sites if site.residual] == residual
    assert all(count.pruned for count in pruned_pass(model, sites, Threshold(0, n=2), X).flops.sites)


def test_a_number_that_is_added_counts_as_bias() -> None:
    torch.manual_seed(0)
    model = Model(sum_with_a_number).double().eval()
    x = X.double()
    with torch.no_grad():
        hidden = model.stem(x).relu()
        terms = linear_terms(hidden, model.a.weight)
    expected = brute_force(terms, 1.0, model.a.bias.detach() - 0.25, 1, (2,), threshold_gap(0), lambda n: 1)
    (count,) = pruned_pass(model, find_sites(model, x), Threshold(0, n=2), x).flops.sites
    assert count.pruned == int(expected.stopped.sum()) < count.outputs


def residual_changed(model: Model, h: Tensor) -> Tensor:
    h = h.clone()
    z = model.a(h) + h
    h.mul_(2)
    return F.relu(z)


def input_changed(model: Model, h: Tensor) -> Tensor:
    h = h.clone()
    z = model.a(h)
    h.add_(1)
    return F.relu(z)


@pytest.mark.parametrize("body", [residual_changed, input_changed])
def test_an_input_or_residual_changed_in_place(body: Callable) -> None:
    """The operands of the partial sums have been overwritten by the time the ReLU runs."""
    assert "in place" in reason_of(Model(body), "a", X)


# Two layers that are added


def tie(model: Model, h: Tensor) -> Tensor:
    return F.relu(model.a(h) + model.b(h))


def tie_reversed(model: Model, h: Tensor) -> Tensor:
    return F.relu(model.b(h) + model.a(h))


def deeper_right(model: Model, h: Tensor) -> Tensor:
    return F.relu(model.a(h) + model.b(inner(h)))


def inner(h: Tensor) -> Tensor:
    """One more linear layer, which changes nothing."""
    return F.linear(h, torch.eye(8, dtype=h.dtype)).relu()


def deeper_left_in_place(model: Model, h: Tensor) -> Tensor:
    out, identity = model.b(inner(h)), model.a(h)
    out += identity
    return F.relu(out)


def deeper_into_shortcut(model: Model, h: Tensor) -> Tensor:
    """``identity += out``, where the identity is a shortcut layer's output."""
    out, identity = model.b(inner(h)), model.a(h)
    identity += out
    return F.relu(identity)


@pytest.mark.parametrize(
    ("body", "site", "shortcut"),
    [
        (tie, "a", "b"),
        (tie_reversed, "b", "a"),
        (deeper_right, "b", "a"),
        (deeper_left_in_place, "b", "a"),
        (deeper_into_shortcut, "b", "a"),
    ],
)
def test_of_two_layers_that_are_added_one_is_the_site(body: Callable, site: str, shortcut: str) -> None:
    torch.manual_seed(0)
    model, x = Model(body).double().eval(), X.double()
    sites = find_sites(model, x)
    assert eligible(sites) == [site]
    found = by_name(sites)
    assert found[site].residual
    assert not found[shortcut].relu
    assert "shortcut" in found[shortcut].reason
    assert site in found[shortcut].reason
    layer, other = getattr(model, site), getattr(model, shortcut)
    with torch.no_grad():
        h = model.stem(x).relu()
        terms = linear_terms(h, layer.weight)
        expected = brute_force(terms, 1.0, layer.bias + other(h), 1, (3,), threshold_gap(-0.01), lambda n: 1)
        dense = model(x)
        run = ExPrune(sites, Threshold(-0.01, n=3))
        with run:
            out = model(x)
    assert 0 < expected.stopped.sum() < expected.stopped.numel()
    assert torch.equal(out, torch.where(expected.stopped, 0.0, dense))
    assert counts(run)[site][1:4] == (expected.pruned_at, expected.negative, expected.wrong)


def test_a_layer_added_to_itself_is_not_called_a_shortcut() -> None:
    """z + z is no residual; z reaches the ReLU through something other than BatchNorm and additions."""
    reason = reason_of(Model(lambda model, h: F.relu((z := model.a(h)) + z)), "a", X)
    assert "shortcut" not in reason


# Layers


def test_grouped_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU())
    sites = find_sites(model, torch.randn(1, 3, 5, 5))
    assert complete(model, sites)
    assert eligible(sites) == ["3"]
    assert "grouped convolution (4 groups)" in by_name(sites)["1"].reason
    assert by_name(sites)["1"].terms == 2


def test_unused_layers_are_listed_with_a_reason() -> None:
    model = Model(lambda model, h: F.relu(model.b(h)))
    sites = find_sites(model, X)
    assert [site.name for site in sites] == ["stem", "b", "a"]  # in the order of their calls
    assert "unused" in by_name(sites)["a"].reason
    assert not by_name(sites)["a"].relu


@pytest.mark.parametrize(
    ("layer", "raw"),
    [
        (nn.Identity(), True),
        (nn.Flatten(), True),
        (nn.BatchNorm1d(6), True),
        (nn.LayerNorm(6), True),
        (Lambda(lambda x: (x - 0.5) / 2), True),
        (nn.Linear(6, 6), False),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Dropout()), False),
    ],
)
def test_the_example_is_raw_until_a_layer_with_parameters(layer: nn.Module, raw: bool) -> None:
    """Rescaling the input does not mix its channels."""
    model = nn.Sequential(layer, nn.Linear(6, 5), nn.ReLU())
    site = by_name(find_sites(model, torch.randn(3, 6)))["1"]
    assert site.relu
    assert site.eligible != raw
    assert not raw or ("raw input" in site.reason and "6 terms" in site.reason)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_learned_embeddings_are_not_raw(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(10, 6), nn.Linear(6, 5), nn.ReLU())
    assert eligible(find_sites(model, torch.randint(10, (3, 4)))) == ["1"]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_without_running_statistics(training: bool) -> None:
    """The BatchNorm uses the batch's statistics in eval mode, too, so it is no affine map of the sum."""
    model = nn.Sequential(
        nn.Linear(3, 6),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.ReLU(),
    ).train(training)
    sites = find_sites(model, torch.randn(6, 3))
    assert eligible(sites) == ["4"]
    assert "BatchNorm" in by_name(sites)["1"].reason
    pruned_pass(model.eval(), sites, Threshold(-0.1, n=2), torch.randn(6, 3))  # and does not hinder the other


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_over_the_sequence_is_not_over_the_channels(dims: int) -> None:
    """BatchNorm1d takes (batch, channels, length), but a Linear's channels come last."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
    sites = find_sites(model, torch.randn(*[6] * (dims - 1), 3))
    assert eligible(sites) == (["1"] if dims == 2 else [])
    assert dims == 2 or "BatchNorm" in by_name(sites)["1"].reason


def test_batch_norm_without_affine_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5, affine=False), nn.ReLU()).double()
    scramble(model)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    norm = model[2]
    a = (norm.running_var + norm.eps).rsqrt()
    b = (model[1].bias.detach() - norm.running_mean) * a
    with torch.no_grad():
        terms = conv_terms(model[0](x), model[1].weight, (1, 1), (0, 0), (1, 1))
    expected = brute_force(terms, a.view(-1, 1, 1), b.view(-1, 1, 1), 1, (3,), threshold_gap(-0.01), lambda n: 1)
    run = pruned_pass(model, find_sites(model, x), Threshold(-0.01, n=3), x)
    assert counts(run)["1"][1:4] == (expected.pruned_at, expected.negative, expected.wrong)
    assert 0 < expected.pruned_at[0] < expected.stopped.numel()


def test_batch_norm_after_batch_norm_and_a_residual_before_both() -> None:
    """z = a2 (a1 (sum + bias + r) + b1) + b2: the residual is scaled, too."""
    torch.manual_seed(0)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Linear(2, 7), nn.Linear(7, 5)
            self.first, self.second = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            return F.relu(self.second(self.first(self.layer(self.stem(x)) + r)))

    model = scramble(Normed().double())
    x, r = torch.randn(30, 2, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)
    sites = find_sites(model, x, r)
    assert eligible(sites) == ["layer"]
    scale, shift = torch.ones(5, dtype=torch.float64), model.layer.bias + r
    with torch.no_grad():
        for norm in (model.first, model.second):
            a = norm.weight / (norm.running_var + norm.eps).sqrt()
            scale, shift = scale * a, (shift - norm.running_mean) * a + norm.bias
        terms = linear_terms(model.stem(x), model.layer.weight)
        expected = brute_force(terms, scale, shift, 1, (3,), threshold_gap(-0.05), lambda n: 1)
        run = ExPrune(sites, Threshold(-0.05, n=3))
        with run:
            model(x, r)
    assert counts(run)["layer"][1:4] == (expected.pruned_at, expected.negative, expected.wrong)
    assert 0 < expected.pruned_at[0] < expected.stopped.numel()


def masked(layer: nn.Module) -> None:
    prune.identity(layer, "weight")
    prune.random_unstructured(layer, "bias", amount=0.5)


def weight_normed(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.7)


@pytest.mark.parametrize("change", [masked, weight_normed])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_layers_whose_weight_is_rebuilt(kind: str, change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        layers, x = [nn.Linear(2, 7), nn.Linear(7, 5)], torch.randn(20, 2, dtype=torch.float64)
    else:
        layers, x = [nn.Conv2d(2, 7, 1), nn.Conv2d(7, 5, 2)], torch.randn(3, 2, 4, 4, dtype=torch.float64)
    model = nn.Sequential(*layers, nn.ReLU()).double().eval()
    change(layers[1])
    sites = find_sites(model, x)
    assert eligible(sites) == ["1"]
    with torch.no_grad():
        dense, hidden, weight = model(x), layers[0](x), layers[1].weight
        terms = linear_terms(hidden, weight) if kind == "linear" else conv_terms(hidden, weight, (1, 1), (0, 0), (1, 1))
        bias = layers[1].bias if kind == "linear" else layers[1].bias.view(-1, 1, 1)
        expected = brute_force(terms, 1.0, bias, weight[0, 0].numel(), (3,), threshold_gap(-0.02), lambda n: 1)
        run = ExPrune(sites, Threshold(-0.02, n=3))
        with run:
            out = model(x)
    assert torch.equal(out, torch.where(expected.stopped, 0.0, dense))
    assert run.flops.sites[0].pruned_flops == expected.pruned_flops
    assert 0 < expected.stopped.sum() < expected.stopped.numel()


def test_a_layer_used_twice() -> None:
    """Both calls are pruned and counted."""
    torch.manual_seed(0)
    model, x = Model(lambda model, h: F.relu(model.a(F.relu(model.a(h))))).double().eval(), X.double()
    sites = find_sites(model, x)
    assert eligible(sites) == ["a"]
    run = pruned_pass(model, sites, Threshold(-0.01, n=3), x)
    with torch.no_grad():
        h, pruned = model.stem(x).relu(), 0
        for _ in range(2):
            terms = linear_terms(h, model.a.weight)
            expected = brute_force(terms, 1.0, model.a.bias, 1, (3,), threshold_gap(-0.01), lambda n: 1)
            h = torch.where(expected.stopped, 0.0, model.a(h).relu())
            pruned += expected.pruned_at[0]
    (count,) = run.flops.sites
    assert (count.outputs, count.pruned) == (2 * 5 * 8, pruned)


def test_a_layer_used_twice_and_only_once_before_a_relu() -> None:
    model = Model(lambda model, h: model.a(F.relu(model.a(h))))
    assert "only some of its 2 calls" in reason_of(model, "a", X)
    assert feeding_a_relu(find_sites(model, X)) == ["stem"]


def test_a_layer_under_two_names_is_one_site() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(3, 6), layer, nn.ReLU(), layer, nn.ReLU())
    assert eligible(find_sites(model, X)) == ["1"]


class Wrapped(nn.Linear):
    """A subclass with its own forward, as adapters have."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


def test_subclasses_of_linear_are_followed_by_what_they_call() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 7), Wrapped(7, 6), nn.ReLU()).double()
    x = X.double()
    with torch.no_grad():
        terms = linear_terms(model[0](x), model[1].weight * 2)
    expected = brute_force(terms, 1.0, model[1].bias.detach(), 1, (3,), threshold_gap(-0.05), lambda n: 1)
    run = pruned_pass(model, find_sites(model, x), Threshold(-0.05, n=3), x)
    assert counts(run)["1"][1:4] == (expected.pruned_at, expected.negative, expected.wrong)


# What cannot be seen


def test_compiled_models_run_as_they_were_written() -> None:
    torch.manual_seed(0)
    eager = Shared(F.relu).eval()
    x = torch.randn(30, 2)
    expected = counts(pruned_pass(eager, find_sites(eager, x), StatsTest(0.3, n=3), x))
    assert expected["layer"][1][0] > 0
    compiled = torch.compile(eager)
    assert [site.name for site in find_sites(compiled, x)] == ["stem", "layer"]
    assert counts(pruned_pass(compiled, find_sites(compiled, x), StatsTest(0.3, n=3), x)) == expected


@pytest.mark.parametrize("part", ["", "layer"])
def test_modules_compiled_after_their_sites_were_found(part: str) -> None:
    torch.manual_seed(0)
    model = Shared(F.relu).eval()
    x = torch.randn(30, 2)
    sites = find_sites(model, x)
    expected = counts(pruned_pass(model, sites, StatsTest(0.3, n=3), x))
    model.get_submodule(part).compile()
    assert counts(pruned_pass(model, sites, StatsTest(0.3, n=3), x)) == expected
    assert find_sites(model, x) == sites


class CompiledForward(Shared):
    """Its forward is compiled, which the module itself does not show."""

    forward = torch.compile(Shared.forward)


def test_a_compiled_forward() -> None:
    torch.manual_seed(0)
    model = CompiledForward(F.relu).eval()
    x = torch.randn(30, 2)
    run = pruned_pass(model, find_sites(model, x), StatsTest(0.3, n=3), x)
    assert run.flops.dense == 30 * (2 * 2 * 6 + 2 * 6 * 5)
    assert run.flops.sites[0].outputs == 30 * 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(3, 2))])
def test_scripted_models_are_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    inner = nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 5), nn.ReLU())
    for model in (make(inner), nn.Sequential(make(inner), nn.Linear(5, 5))):
        with pytest.raises(SettingError, match="script") as caught:
            find_sites(model, torch.randn(3, 2))
        assert "\n" not in str(caught.value)


# The model stays as it was


def test_batch_norm_statistics_are_untouched_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert eligible(find_sites(model, torch.randn(4, 3, 2, 2))) == ["1"]
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in model.modules())


def test_find_sites_does_not_change_its_example() -> None:
    x = X.clone()
    find_sites(Model(in_chain), x)
    assert torch.equal(x, X)


def test_named_examples() -> None:
    assert eligible(find_sites(Model(in_chain), x=X)) == ["a", "b"]


def test_sites_compare_by_what_they_say() -> None:
    """Two models of one class have equal sites, and the text of a site names no module."""
    first, second = (find_sites(Model(in_chain), X) for _ in range(2))
    assert first == second
    assert "Linear(" not in repr(first)
