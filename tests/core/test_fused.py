"""Modules that torch runs fused when nothing observes them: a run that stops nothing gives the same outputs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import ExPrune, InputVariances, StatsTest, find_sites
from tests.core.networks import by_name

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")

WIDTH = 16


def layer(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        **{"d_model": WIDTH, "nhead": 2, "dim_feedforward": 40, "batch_first": True} | settings
    )


def encoder(norm: nn.Module | None = None, nested: bool = True, **settings: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(**settings), 2, norm=norm, enable_nested_tensor=nested)


class Behind(nn.Module):
    """Attention after one layer and before another."""

    def __init__(self, inner: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem, self.inner, self.hidden, self.head = (
            nn.Linear(5, WIDTH),
            inner,
            nn.Linear(WIDTH, 40),
            nn.Linear(40, 3),
        )
        self.call = call

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return self.head(F.relu(self.hidden(self.call(self.inner, self.stem(x), padding))))


def of_encoder(inner: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    return inner(x, src_key_padding_mask=padding)


def of_transformer(inner: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    return inner(x, x, src_key_padding_mask=padding, tgt_key_padding_mask=padding)


def of_attention(inner: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    return inner(x, x, x, key_padding_mask=padding, need_weights=False)[0]


def of_attention_with_weights(inner: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    out, weights = inner(x, x, x, padding)
    return out + weights.sum()


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "encoder": (encoder, of_encoder),
    "encoder with a norm": (lambda: encoder(nn.LayerNorm(WIDTH)), of_encoder),
    "encoder, GELU": (lambda: encoder(activation="gelu"), of_encoder),
    "encoder, not nested": (lambda: encoder(nested=False), of_encoder),
    "encoder, one head": (lambda: encoder(nested=False, d_model=WIDTH, nhead=1), of_encoder),
    "encoder, sequences first": (lambda: encoder(nested=False, batch_first=False), of_encoder),
    "layer": (layer, of_encoder),
    "layer, norm first": (lambda: layer(norm_first=True), of_encoder),
    "attention": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), of_attention),
    "attention, weights": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), of_attention_with_weights),
    "transformer": (lambda: nn.Transformer(WIDTH, 2, 1, 1, 40, batch_first=True), of_transformer),
}


def padding(kind: str) -> Tensor | None:
    """The padding of 3 sequences of length 7."""
    mask = torch.zeros(3, 7, dtype=torch.bool)
    if kind == "none":
        return None
    if kind == "left":
        mask[1, :3] = True
        return mask
    mask[1, 4:] = mask[2, 6:] = True
    if kind == "of a whole sequence":
        mask[0] = True
    return torch.zeros(3, 7).masked_fill(mask, -torch.inf) if kind == "as floats" else mask


PADDINGS = ["none", "right", "left", "of a whole sequence", "as floats"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", MODULES)
def test_a_run_that_stops_nothing(name: str, context: Callable[[], AbstractContextManager]) -> None:
    torch.manual_seed(0)
    make, call = MODULES[name]
    model, x = Behind(make(), call).eval(), torch.randn(3, 7, 5)
    if "sequences first" in name:
        x = x.transpose(0, 1)
    for kind in PADDINGS:
        mask = padding(kind)
        with context():
            own = model(x, mask)
            sites = find_sites(model, x, mask)
            for heuristic in (None, StatsTest(0, n=4)):
                with ExPrune(sites, heuristic):
                    torch.testing.assert_close(model(x, mask), own, equal_nan=True, msg=f"{name}, padding {kind}")
            torch.testing.assert_close(model(x, mask), own, equal_nan=True, rtol=0, atol=0)


def test_nothing_stays_behind() -> None:
    model = Behind(encoder(), of_encoder).eval()
    x, mask = torch.randn(3, 7, 5), padding("right")
    with torch.no_grad():
        sites = find_sites(model, x, mask)
        with pytest.raises(RuntimeError, match="size"), ExPrune(sites, StatsTest(0.1, n=4)):
            model(x, mask[:, :5])
        with ExPrune(sites, None):
            model(x, mask)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_and_modes_of_somebody_else() -> None:
    """Hooks keep torch from its fused kernels, with and without our context."""
    torch.manual_seed(0)
    x, mask = torch.randn(3, 7, 5), padding("of a whole sequence")
    for make, call in (MODULES["layer"], MODULES["attention"]):
        model = Behind(make(), call).eval()
        sites = find_sites(model, x, mask)
        model.inner.register_forward_hook(lambda *_: None)
        with torch.no_grad():
            own = model(x, mask)
            with ExPrune(sites, None):
                torch.testing.assert_close(model(x, mask), own, equal_nan=True)
    model = Behind(encoder(), of_encoder).eval()
    with torch.no_grad(), torch.device("cpu"):
        own = model(x, mask)
        with ExPrune(find_sites(model, x, mask), None):
            torch.testing.assert_close(model(x, mask), own)


def test_what_is_measured_is_what_the_model_computes() -> None:
    torch.manual_seed(0)
    model, x, mask = Behind(encoder(), of_encoder).eval(), torch.randn(3, 7, 5), padding("right")
    sites = find_sites(model, x, mask)
    with torch.no_grad():
        seen = model.inner(model.stem(x), src_key_padding_mask=mask)
        with InputVariances(sites) as inputs:
            model(x, mask)
    torch.testing.assert_close(
        inputs.variances()["hidden"].float(), seen.flatten(0, 1).var(0, correction=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("summand", [True, np.float32(0.5), np.float64(0.5), 0.5 + 0j], ids=str)
def test_summands_that_are_no_tensor(summand: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Linear(5, 9), nn.Linear(9, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu((self.layer(torch.tanh(self.stem(x))) + summand).real)

    model, x = Net().eval(), torch.randn(4, 5)
    site = by_name(find_sites(model, x))["layer"]
    assert site.eligible or "feeds" in str(site.reason)
    with torch.no_grad():
        own = model(x)
        with ExPrune([site], None):
            torch.testing.assert_close(model(x), own)
