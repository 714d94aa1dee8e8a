"""Small networks, and the values of a run that tests compare."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core import ExPrune, Heuristic, Site, find_sites
from exprune.core.errors import SettingError


class Residual(nn.Module):
    """A basic block: the second convolution has a residual; the shortcut is a convolution or the identity."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        return self.relu(out)


class SmallCNN(nn.Module):
    """A stem, two residual blocks, a flattened feature map into a hidden layer, and a head, for 3 x 6 x 6 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = Residual(8, 8)
        self.block2 = Residual(8, 10)
        self.hidden = nn.Linear(10 * 9, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(F.relu(self.stem(x))))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


class Transformer(nn.Module):
    """An embedding, an attention block written with matmul, and an MLP with ReLU; ``flat`` like in OPT."""

    def __init__(self, hidden: int = 12, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.embedding = nn.Embedding(20, hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.fc1 = nn.Linear(hidden, 16)
        self.fc2 = nn.Linear(16, hidden)
        self.head = nn.Linear(hidden, 20)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask`` is True for tokens that are not padding; no token attends to padding."""
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        x = F.layer_norm(x + scores.softmax(-1) @ v, x.shape[-1:])
        shape = x.shape
        x = x.view(-1, shape[-1]) if self.flat else x
        x = x + self.fc2(F.relu(self.fc1(x)))
        return self.head(x.view(shape))


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode; its BatchNorms get random statistics and affine parameters of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            if module.running_var is not None:
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def by_name(sites: list[Site]) -> dict[str, Site]:
    """The sites of a model by name."""
    return {site.name: site for site in sites}


def reason_of(model: nn.Module, name: str, *example: Any) -> str:
    """Why a layer cannot be pruned."""
    reason = by_name(find_sites(model, *example))[name].reason
    assert reason is not None
    assert "\n" not in reason
    return reason


def counts(run: ExPrune) -> dict[str, Any]:
    """Everything that a run has counted, as integers."""
    return {"dense": run.flops.dense, "pruned": run.flops.pruned} | {
        count.site.name: (
            count.outputs,
            count.stopped,
            int(count.negative),
            int(count.wrong),
            count.pruned_flops,
        )
        for count in run.flops.sites
    }


def pruned_pass(model: nn.Module, sites: list[Site], heuristic: Heuristic, *batches: Any) -> ExPrune:
    """A run over some batches."""
    run = ExPrune(sites, heuristic)
    with torch.no_grad(), run:
        for batch in batches:
            model(batch)
    return run


def refusal(action: Callable[[], object]) -> str:
    """The message of the SettingError that the action raises, which must be one line."""
    with pytest.raises(SettingError) as caught:
        action()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message
