"""Which weight a call uses: the same function written with parameters of all kinds and with Linear modules."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import MixtralConfig, MixtralForCausalLM

from exprune.core import ExPrune, Recorder, Site, StatsTest, find_sites
from tests.core.networks import by_name, refusal

HIDDEN, N = 24, 8


class Stem(nn.Module):
    """A layer after a hidden layer, so that its inputs are units."""

    def __init__(self, layer: nn.Module, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.stem, self.layer = nn.Linear(6, hidden), layer

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.layer(F.relu(self.stem(x)), *more)


class Plain(nn.Module):
    """The sum of ReLUs of Linear layers with these weights, which the other modules compute, too."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(w.shape[1], len(w), bias=False) for w in weights)
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight.data.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return sum(F.relu(layer(x)) for layer in self.layers)


class Written(nn.Module):
    """A module with its own parameters and its own forward."""

    def __init__(self, forward: Callable[["Written", Tensor], Tensor], **parameters: Tensor | nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def relus(x: Tensor, *weights: Tensor) -> Tensor:
    """Uses weights of shape (inputs, outputs)."""
    return sum(F.relu(x @ weight) for weight in weights)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def standardised(weight: Tensor) -> Tensor:
    return (weight - weight.mean(0, keepdim=True)) / weight.std(0, keepdim=True)


def filled(m: Written) -> Tensor:
    weight = torch.zeros(HIDDEN, HIDDEN)
    weight[:12] = m.a
    weight[12:] = m.b.mul(2)
    return weight


# Each with the names of its layers, and their weights (outputs, terms) as Linear modules would have them.
KINDS: dict[str, tuple[Callable[[], Written], list[str], Callable[[Written], list[Tensor]]]] = {
    "a root and a stack": (
        lambda: Written(
            lambda m, x: relus(x, m.root, *(m.stacked[k] for k in range(3))),
            root=random(HIDDEN, HIDDEN),
            stacked=random(3, HIDDEN, HIDDEN),
        ),
        ["root", "stacked[0]", "stacked[1]", "stacked[2]"],
        lambda m: [m.root.t(), *(m.stacked[k].t() for k in range(3))],
    ),
    "a stack, iterated": (
        lambda: Written(lambda m, x: relus(x, *m.stacked), stacked=random(2, HIDDEN, HIDDEN)),
        ["stacked[0]", "stacked[1]"],
        lambda m: [w.t() for w in m.stacked],
    ),
    "rows": (
        lambda: Written(
            lambda m, x: F.relu(F.linear(x, m.w[:HIDDEN])) + F.relu(F.linear(x, m.w[HIDDEN:])),
            w=random(2 * HIDDEN, HIDDEN),
        ),
        ["w[0:24]", "w[24:48]"],
        lambda m: [m.w[:HIDDEN], m.w[HIDDEN:]],
    ),
    "columns": (
        lambda: Written(lambda m, x: relus(x, *m.w.chunk(2, dim=1)), w=random(HIDDEN, 2 * HIDDEN)),
        ["w[:,0:24]", "w[:,24:48]"],
        lambda m: [m.w[:, :HIDDEN].t(), m.w[:, HIDDEN:].t()],
    ),
    "views": (
        lambda: Written(lambda m, x: relus(x, *m.w.view(2, HIDDEN, HIDDEN)), w=random(2 * HIDDEN * HIDDEN)),
        ["w.flatten()[0:576]", "w.flatten()[576:1152]"],
        lambda m: [w.t() for w in m.w.view(2, HIDDEN, HIDDEN)],
    ),
    "one matrix in both directions": (
        lambda: Written(lambda m, x: F.relu(x @ m.w) + F.relu(F.linear(x, m.w)), w=random(HIDDEN, HIDDEN)),
        ["w", "w.T"],
        lambda m: [m.w.t(), m.w],
    ),
    "a list of parameters": (
        lambda: Written(
            lambda m, x: relus(x, *m.ws), ws=nn.ParameterList([random(HIDDEN, HIDDEN), -random(HIDDEN, HIDDEN)])
        ),
        ["ws.0", "ws.1"],
        lambda m: [w.t() for w in m.ws],
    ),
    "low rank": (
        lambda: Written(lambda m, x: F.relu(F.linear(x, m.a @ m.b)), a=random(HIDDEN, 3), b=random(3, HIDDEN)),
        ["a+b"],
        lambda m: [m.a @ m.b],
    ),
    "standardised": (
        lambda: Written(lambda m, x: relus(x, standardised(m.w)), w=random(HIDDEN, HIDDEN)),
        ["w"],
        lambda m: [standardised(m.w).t()],
    ),
    "of bases, as relational layers have it": (
        lambda: Written(
            lambda m, x: relus(x, *torch.einsum("rb,bij->rij", m.share, m.bases)),
            share=random(2, 3),
            bases=random(3, HIDDEN, HIDDEN),
        ),
        ["bases+share", "bases+share (2)"],
        lambda m: [w.t() for w in torch.einsum("rb,bij->rij", m.share, m.bases)],
    ),
    "rows chosen by an index": (
        lambda: Written(lambda m, x: relus(x, *m.stacked[torch.tensor([2, 0])]), stacked=random(3, HIDDEN, HIDDEN)),
        ["stacked", "stacked (2)"],
        lambda m: [m.stacked[2].t(), m.stacked[0].t()],
    ),
    "two layers in one": (
        lambda: Written(
            lambda m, x: F.relu(F.linear(x, torch.cat([m.a.weight, m.b.weight]))),
            a=nn.Linear(HIDDEN, 10),
            b=nn.Linear(HIDDEN, 14),
        ),
        ["a.weight+b.weight"],
        lambda m: [torch.cat([m.a.weight, m.b.weight])],
    ),
    "filled in place": (
        lambda: Written(lambda m, x: F.relu(F.linear(x, filled(m))), a=random(12, HIDDEN), b=random(12, HIDDEN)),
        ["a+b"],
        lambda m: [filled(m)],
    ),
}


def sites_of(model: nn.Module, *x: Tensor) -> dict[str, Site]:
    return by_name(find_sites(model, *x))


def made(kind: str) -> tuple[Stem, Stem]:
    """Return a network with such a layer, and the same function in Linear modules."""
    make, _, weights = KINDS[kind]
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        plain = Stem(Plain([w.clone() for w in weights(layer)])).eval()
    model = Stem(layer).eval()
    model.stem.load_state_dict(plain.stem.state_dict())
    return model, plain


def run(model: nn.Module, sites: dict[str, Site], *x: Tensor) -> tuple[Tensor, ExPrune]:
    with torch.inference_mode(), ExPrune(list(sites.values()), StatsTest(0.3, n=N)) as pruned:
        out = model(*x)
    return out, pruned


def counts(pruned: ExPrune) -> list[tuple]:
    return [(c.outputs, int(c.pruned), int(c.negative), int(c.wrong)) for c in pruned.flops.sites]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_function_in_linear_modules(kind: str) -> None:
    (model, plain), names, x = made(kind), KINDS[kind][1], torch.randn(40, 6)
    sites, expected = sites_of(model, x), sites_of(plain, x)
    eligible = [site for site in sites.values() if site.eligible]
    assert [site.name for site in eligible] == [f"layer.{name}" for name in names]
    for site, other in zip(eligible, [s for s in expected.values() if s.eligible], strict=True):
        assert (site.terms, site.outputs) == (other.terms, other.outputs)
        torch.testing.assert_close(site.weight, other.weight)
    (out, pruned), (same, reference) = run(model, sites, x), run(plain, expected, x)
    torch.testing.assert_close(out, same)
    assert counts(pruned) == counts(reference)
    assert pruned.flops.dense - pruned.flops.pruned == reference.flops.dense - reference.flops.pruned


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_of_one_layer_each(kind: str) -> None:
    nets, x, measured = made(kind), torch.randn(200, 6), []
    for net in nets:
        recorder = Recorder(find_sites(net, x), (N, 2 * N))
        with torch.inference_mode(), recorder:
            net(x)
        measured.append(list(recorder.statistics().values()))
    for own, other in zip(*measured, strict=True):
        for field in ("slope", "offset", "sd"):
            torch.testing.assert_close(getattr(own, field), getattr(other, field))


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.orthogonal,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
        lambda layer: parametrizations.orthogonal(layer, use_trivialization=False),
        lambda layer: parametrize.register_parametrization(layer, "weight", Written(lambda m, w: w * m.s, s=random(1))),
    ],
    ids=["orthogonal", "weight norm", "spectral norm", "cayley", "no trivialization", "scaled"],
)
@pytest.mark.parametrize("outputs", [HIDDEN - 8, HIDDEN, HIDDEN + 8])
def test_parametrized_weights(change: Callable, outputs: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN, outputs)
    change(layer)
    model, x = Stem(nn.Sequential(layer, nn.ReLU())).eval(), torch.randn(40, 6)
    plain = Stem(nn.Sequential(nn.Linear(HIDDEN, outputs), nn.ReLU())).eval()
    plain.stem.load_state_dict(model.stem.state_dict())
    plain.layer[0].weight.data.copy_(layer.weight)
    plain.layer[0].bias.data.copy_(layer.bias)
    sites = sites_of(model, x)
    assert [site.name for site in sites.values() if site.eligible] == ["layer.0"]
    assert {site.name for site in sites.values()} == {"stem", "layer.0"}
    (out, pruned), (same, reference) = run(model, sites, x), run(plain, sites_of(plain, x), x)
    torch.testing.assert_close(out, same, rtol=1e-4, atol=1e-5)
    assert counts(pruned) == counts(reference)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_sites_of_computed_weights_travel_with_their_model(how: str) -> None:
    model, x = Stem(nn.Sequential(parametrizations.weight_norm(nn.Linear(HIDDEN, 8)), nn.ReLU())).eval(), random(40, 6)
    both = model, find_sites(model, x)
    if how == "pickle":
        model.layer[0] = nn.Linear(HIDDEN, 8)  # torch refuses to pickle a parametrized module
        model.layer[0].weight = nn.Parameter(random(8, HIDDEN))
        both = model, find_sites(model, x)
    there, sites = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    named = {site.name: site for site in sites}
    assert counts(run(there, named, x)[1]) == counts(run(model, {s.name: s for s in both[1]}, x)[1])


def test_masks_of_parts() -> None:
    """Each slice of a masked parameter has its own part of the mask."""
    torch.manual_seed(0)
    layer = Written(lambda m, x: relus(x, *(m.stacked[k] for k in range(2))), stacked=random(2, HIDDEN, HIDDEN))
    mask = torch.rand(2, HIDDEN, HIDDEN) < 0.5
    mask[1] = True
    prune.custom_from_mask(layer, "stacked", mask)
    model, x = Stem(layer).eval(), torch.randn(40, 6)
    sites = sites_of(model, x)
    assert torch.equal(sites["layer.stacked[0]"].mask, mask[0].t())
    assert sites["layer.stacked[1]"].mask is None
    with torch.inference_mode(), ExPrune(list(sites.values()), None) as dense:
        model(x)
    left = 6 * HIDDEN + int(mask.sum())
    assert dense.flops.dense == 40 * 2 * left


def test_what_computes_a_weight_is_no_layer_that_is_pruned() -> None:
    make, _, _ = KINDS["low rank"]
    sites = sites_of(Stem(make()).eval(), torch.randn(40, 6))
    assert sites["layer.b"].reason == "what it computes is a weight"
    assert sites["layer.b"].outcomes == ()
    make, _, _ = KINDS["two layers in one"]
    sites = sites_of(Stem(make()).eval(), torch.randn(40, 6))
    assert sites["layer.a"].reason == "its weight is used to compute that of layer.a.weight+b.weight"


class Conditional(nn.Linear):
    """Its weight depends on the input."""

    def __init__(self, how: str) -> None:
        super().__init__(HIDDEN, HIDDEN)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * 1.0
        if self.how == "in place":
            weight[0].copy_(x[0])
        elif self.how == "filled":
            weight[1] = x[1]
        elif self.how == "random":
            weight = weight + torch.randn_like(weight)
        else:
            weight = weight * x.mean()
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("how", ["scaled", "in place", "filled", "random"])
def test_a_weight_that_an_input_enters(how: str) -> None:
    model, x = Stem(nn.Sequential(Conditional(how), nn.ReLU(), nn.Linear(HIDDEN, 4), nn.ReLU())).eval(), random(40, 6)
    sites = sites_of(model, x)
    assert "its weight" in sites["layer.0"].reason and not sites["layer.0"].outcomes
    assert sites["layer.2"].eligible
    assert int(run(model, sites, x)[1].flops.sites[0].outputs) == 160


class GCN(nn.Module):
    """Written by hand, as in the paper: relu(linear), then propagation; and once more with a dense layer after it."""

    def __init__(self, propagate: Callable, features: Callable | None = None) -> None:
        super().__init__()
        self.propagate, self.features = propagate, features or torch.mm
        self.W1, self.W2 = nn.Parameter(random(6, HIDDEN)), nn.Parameter(random(HIDDEN, HIDDEN))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = F.relu(self.propagate(adjacency, self.features(x, self.W1)))
        return self.propagate(adjacency, F.relu(torch.mm(h, self.W2)))


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("layout", ["dense", "sparse", "csr"])
@pytest.mark.parametrize("call", ["spmm", "mm", "matmul", "@", "sparse.mm"])
def test_propagation_by_a_product_is_no_layer(call: str, layout: str) -> None:
    propagate = {
        "spmm": torch.spmm,
        "mm": torch.mm,
        "matmul": torch.matmul,
        "@": lambda a, b: a @ b,
        "sparse.mm": lambda a, b: torch.sparse.mm(a, b),
    }[call]
    torch.manual_seed(0)
    dense = (torch.rand(40, 40) < 0.2).float()
    adjacency = {"dense": lambda: dense, "sparse": dense.to_sparse, "csr": dense.to_sparse_csr}[layout]()
    model, x = GCN(propagate).eval(), random(40, 6)
    sites = sites_of(model, x, adjacency)
    assert [site.name for site in sites.values() if site.eligible] == ["W2"]
    assert "adjacency" not in sites and "feeds" in sites["W1"].reason
    out, pruned = run(model, sites, x, adjacency)
    with torch.no_grad():
        h = F.relu(dense @ (x @ model.W1))
        terms = h[:, None, :] * model.W2.t()
        first = terms[..., :N]
        test = first.mean(-1) / ((first**2).mean(-1) - first.mean(-1) ** 2).clamp(min=0).div(N).sqrt()
        stopped = test < torch.special.ndtri(torch.tensor(0.3))
        expected = dense @ F.relu(terms.sum(-1)).masked_fill(stopped, 0)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert counts(pruned)[0][:2] == (40 * HIDDEN, int(stopped.sum()))


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_sparse_features_are_named_and_refuse_nothing_else() -> None:
    model, adjacency = GCN(torch.spmm, torch.spmm).eval(), torch.eye(40).to_sparse()
    sites = sites_of(model, x := random(40, 6).relu().to_sparse(), adjacency)
    assert "sparse" in sites["W1"].reason and sites["W2"].eligible
    run(model, sites, x, adjacency)


def test_a_part_used_outside_of_its_module() -> None:
    """A call of a module's forward is reported for a slice of a parameter as for a whole parameter."""
    make, _, _ = KINDS["a root and a stack"]

    class Direct(Stem):
        direct = False

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.stem(x))
            return self.layer.forward(h) if self.direct else self.layer(h)

    model, x = Direct(make()).eval(), random(40, 6)
    sites = sites_of(model, x)
    model.direct = True
    assert "its weight was used while its module did not run" in refusal(lambda: run(model, sites, x))


@pytest.mark.parametrize("how", ["eager", "grouped_mm"])
def test_stacked_experts_of_transformers(how: str) -> None:
    """Mixtral's experts lie in two parameters; each expert that is computed on its own is a layer of its own."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_local_experts": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50, "hidden_act": "relu"}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()
    model.set_experts_implementation(how)
    tokens = torch.randint(50, (4, 30))
    sites = sites_of(model, tokens)
    experts = "model.layers.0.mlp.experts"
    if how == "grouped_mm":
        assert sites[experts].reason == "computes grouped_mm, which is not followed to an activation"
        return
    gates = [f"{experts}.gate_up_proj[{k}][0:48]" for k in range(3)]
    assert sorted(site.name for site in sites.values() if site.eligible) == gates
    of_experts, calls = model.model.layers[0].mlp.experts, []
    hook = of_experts.register_forward_hook(lambda module, args, out: calls.append(args))
    _, pruned = run(model, sites, tokens)
    hook.remove()
    (hidden, chosen, _), *_ = calls
    by_site = {count.site.name: count for count in pruned.flops.sites}
    for k, name in enumerate(gates):
        rows = hidden[(chosen == k).any(-1)].double()
        terms = rows[:, None, :] * of_experts.gate_up_proj[k, :48].detach().double()
        mean, square = terms[..., :N].mean(-1), terms[..., :N].square().mean(-1)
        stopped = mean / ((square - mean.square()) / N).sqrt() < torch.special.ndtri(torch.tensor(0.3))
        assert by_site[name].outputs == stopped.numel()
        assert abs(int(by_site[name].pruned) - int(stopped.sum())) <= 1  # of float32 and float64
