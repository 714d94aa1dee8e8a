"""Low-rank adapters that are not merged, as PEFT keeps them next to their layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import ExPrune, StatsTest, find_sites
from tests.core.networks import by_name, refusal


class Adapted(nn.Module):
    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, left: bool) -> None:
        super().__init__()
        self.base_layer, self.left = base, left
        self.lora_dropout = nn.Dropout(0.1)
        if isinstance(base, nn.Linear):
            self.lora_A = nn.Linear(base.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        else:
            self.lora_A = nn.Conv2d(base.in_channels, rank, base.kernel_size, bias=False)
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        update = self.lora_B(self.lora_A(self.lora_dropout(x))) * 2.0
        return out + update if self.left else update + out

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.base_layer.weight += 2 * self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


class Net(nn.Module):
    def __init__(self, conv: bool = False, rank: int = 4, left: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 40, 3) if conv else nn.Linear(6, 40)
        self.layer = Adapted(nn.Conv2d(40, 30, 3) if conv else nn.Linear(40, 30), rank, left)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(torch.tanh(self.stem(x))))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("conv", [True, False])
def test_an_adapter_is_told_to_be_one_that_can_be_merged(conv: bool, left: bool) -> None:
    model, x = Net(conv, left=left), torch.randn(4, 3, 8, 8) if conv else torch.randn(30, 6)
    sites = find_sites(model, x)
    base, adapter = by_name(sites)["layer.base_layer"].reason, by_name(sites)["layer.lora_B"].reason
    assert base is not None and base.startswith("layer.lora_B is a low-rank adapter of it; merge it")
    assert adapter is not None and adapter.startswith("a low-rank adapter of layer.base_layer; merge it")
    assert "layer.base_layer; merge it" in refusal(lambda: ExPrune(sites, StatsTest(0.1)))


def test_merged_it_is_a_layer_like_others() -> None:
    model, x = Net(), torch.randn(30, 6)
    with torch.no_grad():
        own = model(x)
        model.layer = model.layer.merged()
        with ExPrune(find_sites(model, x), StatsTest(0, n=4)):
            torch.testing.assert_close(model(x), own)
    assert by_name(find_sites(model, x))["layer"].eligible


def test_what_is_no_adapter() -> None:
    """A path of full rank is a layer of its own, and so is one after an activation."""
    full = by_name(find_sites(Net(rank=40), torch.randn(30, 6)))
    assert full["layer.lora_B"].eligible
    assert full["layer.base_layer"].reason == "a shortcut, added to layer.lora_B"
    model = Net()
    model.layer.lora_A = nn.Sequential(nn.Linear(40, 4), nn.ReLU())
    behind = by_name(find_sites(model, torch.randn(30, 6)))
    assert behind["layer.lora_B"].eligible
    assert behind["layer.base_layer"].reason == "a shortcut, added to layer.lora_B"
