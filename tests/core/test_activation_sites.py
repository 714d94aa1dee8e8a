"""How layers before an activation are found, and what is not an activation."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import (
    Optimal,
    Recorder,
    register_activation,
)
from exprune.core.calls.activations import ACTIVATION_CALLS
from tests.core.activations import (
    Block,
    Chosen,
    Function,
    OwnReLU,
    QuickGELU,
    SquaredReLU,
    batch,
    layer_of,
    registered,
)
from tests.core.networks import pruned_pass, refusal, scramble


class SquaredReLUInPlace(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z, inplace=True).pow(2)


class NewGELU(nn.Module):
    """The explicit formula of transformers."""

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * torch.pow(z, 3))))


class Spelled(nn.Module):
    """A module of ours around a known call."""

    def forward(self, z: Tensor) -> Tensor:
        return F.gelu(z)


SPELLINGS: dict[str, Function | nn.Module] = {
    "gelu": F.gelu,
    "gelu, tanh": lambda z: F.gelu(z, approximate="tanh"),
    "GELU": nn.GELU(),
    "GELU, tanh": nn.GELU("tanh"),
    "silu": F.silu,
    "silu in place": lambda z: F.silu(z, inplace=True),
    "SiLU": nn.SiLU(),
    "SiLU in place": nn.SiLU(inplace=True),
    "mish": F.mish,
    "Mish in place": nn.Mish(inplace=True),
    "hardswish": F.hardswish,
    "Hardswish in place": nn.Hardswish(inplace=True),
    "elu": lambda z: F.elu(z, 0.5),
    "elu_": F.elu_,
    "ELU in place": nn.ELU(0.3, inplace=True),
    "celu": lambda z: F.celu(z, alpha=0.5),
    "celu_": torch.celu_,
    "CELU": nn.CELU(0.5),
    "selu": F.selu,
    "selu_": torch.selu_,
    "SELU in place": nn.SELU(inplace=True),
    "softplus": F.softplus,
    "Softplus": nn.Softplus(beta=2.0, threshold=3.0),
    "leaky_relu": F.leaky_relu,
    "leaky_relu_": lambda z: F.leaky_relu_(z, negative_slope=0.2),
    "LeakyReLU in place": nn.LeakyReLU(0.1, inplace=True),
    "quick gelu": QuickGELU(),
    "squared relu": SquaredReLU(),
    "squared relu in place": SquaredReLUInPlace(),
    "gelu written out": NewGELU(),
    "a module around gelu": Spelled(),
}


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, conv: bool) -> None:
    """As a module or function, in place or not, after a BatchNorm and an addition or not."""
    torch.manual_seed(0)
    function, x = SPELLINGS[spelling], batch(conv)
    for norm, residual in ((False, False), (True, False), (True, True)):
        model = scramble(Block(function, conv, norm, residual))
        site = layer_of(model, x)
        assert site.eligible, site.reason
        assert site.activation is not None
        assert not site.relu
        assert not site.before_relu
        assert site.before_activation
        assert site.residual == residual
        assert (site.reader, site.gated, dict(site.spared)) == ("head", None, {"head": 6})
        z = torch.linspace(-5, 5, 101)
        assert torch.equal(site.activation(z), function(z.clone()))
        assert torch.equal(z, torch.linspace(-5, 5, 101))  # it changes nothing in place


def test_rows_in_several_dimensions() -> None:
    model = Block(F.gelu)
    model.z = lambda x: model.layer(model.hidden(x)).view(2, 3, 4)
    assert layer_of(model, torch.randn(6, 2)).reader == "head"
    assert layer_of(Block(F.silu), torch.randn(2, 3, 2)).eligible


def test_names_say_what_an_activation_was_set_to() -> None:
    names = {}
    for spelling in ("gelu", "GELU, tanh", "ELU in place", "Softplus", "quick gelu", "a module around gelu"):
        activation = layer_of(Block(SPELLINGS[spelling]), batch()).activation
        assert activation is not None
        names[spelling] = activation.name
    assert list(names.values()) == ["gelu", "gelu(tanh)", "elu(0.3)", "softplus(2, 3)", "QuickGELU", "gelu"]


def test_a_module_that_is_a_relu_is_one() -> None:
    site = layer_of(Block(OwnReLU()), batch())
    assert site.relu
    assert site.before_relu


class Identity(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * 1.0


class Softmax(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.softmax(-1)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.7))

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(self.beta * z)


class Random(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z + torch.rand_like(z))


class Normalised(nn.Module):
    """A LayerNorm without parameters."""

    def forward(self, z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-5)


class Cumulative(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.cumsum(-1)


class Wrapper(nn.Module):
    """A module with submodules, which are recognised instead of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Tanh()

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z)


@pytest.mark.parametrize("module", [Identity, Softmax, Learned, Random, Normalised, Cumulative, Wrapper])
def test_modules_that_are_no_activation(module: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    site = layer_of(Block(module()), batch())
    assert not site.eligible
    assert site.activation is None
    assert "\n" not in (site.reason or "")


@pytest.mark.parametrize(
    "read",
    [
        lambda m, z: m.down(F.gelu(z)) + z.sum(),
        lambda m, z: (m.down(F.gelu(z)), z),
        lambda m, z: m.down(F.gelu(z) * torch.sigmoid(z)),
        lambda m, z: m.down(F.gelu(z) * F.silu(z)),
        lambda m, z: m.down(m.act(z)) + z.amax(),
    ],
    ids=["sum", "returned", "sigmoid", "two activations", "module"],
)
def test_a_pre_activation_that_is_read_by_something_else(read: Callable[[Chosen, Tensor], Any]) -> None:
    model = Chosen(lambda m, h: read(m, m.layer(h)))
    model.act = QuickGELU()
    assert "its pre-activation is also read by" in (layer_of(model, batch()).reason or "")


class Keeps(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        self.kept = z
        return F.silu(z) * 2


def test_a_module_that_keeps_its_pre_activation() -> None:
    assert "keeps it" in (layer_of(Block(Keeps()), batch()).reason or "")


def test_register_activation() -> None:
    model, x = Block(nn.Tanh()), batch(inputs=120)
    assert "register_activation(torch.tanh)" in (layer_of(model, x).reason or "")
    with registered(torch.tanh):
        site = layer_of(model, x)
        assert site.eligible
        assert site.activation is not None
        assert site.activation.name == "tanh"
        assert torch.equal(site.activation(x), torch.tanh(x))
        with torch.no_grad(), Recorder([site], (2, 4)) as recorder:
            model(x)
        measured = {"layer": replace(recorder.statistics()["layer"], gradient=torch.ones(4, dtype=torch.float64))}
        run = pruned_pass(model, [site], Optimal(0.02, (2, 4), measured, predict=True), x)
        assert run.flops.sites[0].pruned > 0
    assert not layer_of(model, x).eligible


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (nn.GELU(), "needs no registration"),
        (nn.GELU, "needs no registration"),
        ("gelu", "is not a function of torch"),
        (None, "is not a function of torch"),
        (lambda z: 2 * z, "so its calls cannot be seen"),
        (torch.matmul, "register_activation: matmul"),
        (torch.softmax, "register_activation: softmax"),
        (F.glu, "glu is not elementwise"),
        (torch.sort, "sort is not elementwise"),
        (torch.clone, "clone is not elementwise"),
        (F.dropout, "dropout is not elementwise"),
        (torch.log, "log is not elementwise"),  # undefined below 0
    ],
)
def test_what_cannot_be_registered(function: Any, said: str) -> None:
    before = set(ACTIVATION_CALLS)
    assert said in refusal(lambda: register_activation(function))
    assert before == ACTIVATION_CALLS
