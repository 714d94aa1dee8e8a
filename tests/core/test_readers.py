"""Every way to read or change a pre-activation is detected."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

from exprune.core import Threshold, find_sites
from tests.core.brute_force import brute_force, conv_terms, threshold_gap
from tests.core.networks import by_name, pruned_pass


class Holder:
    """Any object."""

    def __init__(self, value: object) -> None:
        self.value = value


@dataclass
class Output:
    hidden: object
    logits: Tensor


class Reader(nn.Module):
    """``read(self, z)`` uses the pre-activation and returns what the model returns beside the logits."""

    def __init__(self, read: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 9), nn.Linear(9, 8), nn.Linear(8, 2)
        self.read, self.kept = read, None

    def forward(self, x: Tensor) -> Output:
        z = self.layer(torch.tanh(self.stem(x)))
        beside = self.read(self, z)
        return Output(beside, self.head(F.relu(z)))


def keep(model: nn.Module, z: Tensor) -> None:
    model.kept = z


@torch.jit.script
def scripted_mean(z: Tensor) -> Tensor:
    return z.mean()


@torch.jit.script
def scripted_change(z: Tensor) -> Tensor:
    return z.mul_(2)


READS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "in a dataclass": lambda model, z: z,
    "in another object": lambda model, z: Holder(z),
    "deeper": lambda model, z: Holder([SimpleNamespace(z=z)]),
    "in a closure": lambda model, z: lambda: z,
    "as an attribute": keep,
    "as numpy": lambda model, z: z.numpy(),
    "as numpy, converted": lambda model, z: np.asarray(z).sum(),
    "as a list": lambda model, z: z.tolist(),
    "as a number": lambda model, z: float(z[0, 0]),
    "as a condition": lambda model, z: bool((z > 0).any()),
    "by DLPack": lambda model, z: torch.utils.dlpack.to_dlpack(z),
    "by a scripted function": lambda model, z: scripted_mean(z),
    "changed by a scripted function": lambda model, z: scripted_change(z),
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("inference", [False, True])
def test_a_pre_activation_that_is_read(how: str, inference: bool) -> None:
    torch.manual_seed(0)
    model = Reader(READS[how]).eval()
    if inference:
        model.forward = torch.inference_mode()(model.forward)
    site = by_name(find_sites(model, torch.randn(6, 4)))["layer"]
    assert site.reason is not None and "\n" not in site.reason


def test_one_that_nobody_reads() -> None:
    for harmless in (
        lambda model, z: None,
        lambda model, z: (z.shape, z.dtype, z.device, z.dim(), len(z), z.size(0), z.numel(), z.is_contiguous()),
        lambda model, z: torch.zeros_like(z),
    ):
        model = Reader(harmless).eval()
        assert by_name(find_sites(model, torch.randn(6, 4)))["layer"].eligible


def test_a_hook_that_keeps_it() -> None:
    model, kept = Reader(lambda model, z: None).eval(), []
    handle = model.layer.register_forward_hook(lambda module, args, out: kept.append(out))
    assert "keeps it" in by_name(find_sites(model, torch.randn(6, 4)))["layer"].reason
    handle.remove()
    assert by_name(find_sites(model, torch.randn(6, 4)))["layer"].eligible


class InPlace(nn.Module):
    """Changes the value that the test reads, before the ReLU."""

    def __init__(self, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.change = nn.Linear(4, 9), nn.Linear(9, 9), change

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.stem(x))
        residual = hidden * 2
        return F.relu(self.change(self.layer(hidden), hidden, residual))


def change_view(z: Tensor, hidden: Tensor, residual: Tensor) -> Tensor:
    view = z[:, :4]
    view.mul_(2)
    return z


def change_input(z: Tensor, hidden: Tensor, residual: Tensor) -> Tensor:
    hidden.zero_()
    return z


def change_residual(z: Tensor, hidden: Tensor, residual: Tensor) -> Tensor:
    z = z + residual
    residual.add_(1)
    return z


@pytest.mark.parametrize("change", [change_view, change_input, change_residual, lambda z, *_: z.sigmoid_()])
def test_changes_in_place_under_inference_mode(change: Callable[..., Tensor]) -> None:
    model = InPlace(change).eval()
    site = by_name(find_sites(model, torch.randn(6, 4)))["layer"]
    assert site.reason is not None


def test_without_such_a_change_it_is_a_site() -> None:
    assert by_name(find_sites(InPlace(lambda z, *_: z).eval(), torch.randn(6, 4)))["layer"].eligible


class Frozen(nn.Module):
    """A convolution followed by torchvision's frozen BatchNorm, which multiplies by one number per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.norm = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 3), FrozenBatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.layer(torch.tanh(self.stem(x)))))


def test_a_frozen_batch_norm_is_affine() -> None:
    torch.manual_seed(0)
    model = Frozen().double().eval()
    for buffer in (model.norm.weight, model.norm.bias, model.norm.running_mean):
        buffer.copy_(torch.randn(5))
    model.norm.running_var.copy_(torch.rand(5) + 0.5)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert site.eligible and not site.residual
    with torch.no_grad():
        hidden = torch.tanh(model.stem(x))
        scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        shift = model.norm.bias + (model.layer.bias - model.norm.running_mean) * scale
        terms = conv_terms(hidden, model.layer.weight, (1, 1), (0, 0), (1, 1))
    a, b = (values.view(-1, 1, 1) for values in (scale, shift))
    expected = brute_force(terms, a, b, 9, (3,), threshold_gap(-0.1), lambda n: 1)
    (count,) = pruned_pass(model, [site], Threshold(-0.1, n=3), x).flops.sites
    assert count.stopped == expected.pruned_at and count.pruned > 0
    assert (int(count.negative), int(count.wrong)) == (expected.negative, expected.wrong)


AFFINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z * scale": lambda z, scale: z * scale,
    "scale * z": lambda z, scale: scale * z,
    "torch.mul": lambda z, scale: torch.mul(z, scale),
    "z.mul_(scale)": lambda z, scale: z.mul_(scale),
    "z / scale": lambda z, scale: z / scale,
    "2 * z": lambda z, scale: 2 * z,
    "z - scale": lambda z, scale: z - scale,
    "z + scale": lambda z, scale: scale + z,
    "(z - scale) * scale + scale": lambda z, scale: (z - scale) * scale + scale,
}


@pytest.mark.parametrize("how", AFFINE)
def test_products_and_sums_with_one_number_per_channel(how: str) -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 1)
            self.register_buffer("scale", torch.randn(1, 5, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(AFFINE[how](self.layer(torch.tanh(self.stem(x))), self.scale))

    model = Model().double().eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    site = by_name(find_sites(model, x))["layer"]
    assert site.eligible and not site.residual
    with torch.no_grad():
        terms = conv_terms(torch.tanh(model.stem(x)), model.layer.weight, (1, 1), (0, 0), (1, 1))
        through = lambda z: AFFINE[how](z, model.scale)  # noqa: E731
        zero = torch.zeros(1, 5, 1, 1, dtype=torch.float64)
        b = through(zero + model.layer.bias.view(1, -1, 1, 1))
        a = through(zero + 1) - through(zero.clone())
    expected = brute_force(terms, a[0], b[0], 1, (3,), threshold_gap(-0.1), lambda n: 1)
    (count,) = pruned_pass(model, [site], Threshold(-0.1, n=3), x).flops.sites
    assert count.stopped == expected.pruned_at and count.pruned > 0
    assert (int(count.negative), int(count.wrong)) == (expected.negative, expected.wrong)


def test_a_gate_made_of_the_input_is_no_constant() -> None:
    """Squeeze and excitation: one number per channel for each input; here there is only one input."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.gate = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.stem(x))
            return F.relu(self.layer(hidden) * torch.sigmoid(self.gate(hidden.mean((2, 3), keepdim=True))))

    site = by_name(find_sites(Gated().eval(), torch.randn(1, 2, 4, 4)))["layer"]
    assert "mul" in site.reason
