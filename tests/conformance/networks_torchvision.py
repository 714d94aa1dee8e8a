"""All classification networks of torchvision. The first layer of each reads the raw input, so it is not a site."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torchvision.models
from torch import nn
from torchvision.models.video import MViT, mvit

from tests.conformance.network import Network, uninitialised


def images(name: str, size: int = 32, **settings: Any) -> Callable[[], tuple[nn.Module, tuple, dict]]:
    """A function that builds the network and two images."""

    def build() -> tuple[nn.Module, tuple, dict]:
        with uninitialised():
            model = torchvision.models.get_model(name, weights=None, num_classes=10, **settings)
        return model, (torch.randn(2, 3, size, size),), {}

    return build


def videos(name: str, size: int = 32, frames: int = 8) -> Callable[[], tuple[nn.Module, tuple, dict]]:
    """A function that builds the network and two videos."""

    def build() -> tuple[nn.Module, tuple, dict]:
        with uninitialised():
            model = torchvision.models.get_model(name, weights=None, num_classes=10)
        return model, (torch.randn(2, 3, frames, size, size),), {}

    return build


def _s3d() -> tuple[nn.Module, tuple, dict]:
    """The last pooling expects large videos."""
    model, args, kwargs = videos("s3d", 32, 16)()
    model.avgpool = nn.AvgPool3d((2, 1, 1), stride=1)
    return model, args, kwargs


def _mvit(name: str) -> Callable[[], tuple[nn.Module, tuple, dict]]:
    """A function that builds the network for small videos, for which it has no setting."""

    def build() -> tuple[nn.Module, tuple, dict]:
        def small(**settings: Any) -> nn.Module:
            return MViT(**settings | {"spatial_size": (32, 32), "temporal_size": 4})

        with mock.patch.object(mvit, "MViT", small):
            return videos(name, 32, 4)()

    return build


def _vgg(name: str, convolutions: int) -> Network:
    """Every convolution but the first, and two hidden layers, the first of which reads a 7 x 7 map."""
    return Network(images(name), convolutions - 1 + 2, flattened={"classifier.0": 49})


def _resnet(name: str, blocks: int, per_block: int, fast: bool = False) -> Network:
    """Blocks whose last convolution has the shortcut added to it; grouped convolutions are not sites."""
    return Network(images(name), blocks * per_block, residual=blocks, fast=fast)


def _regnet(name: str, depths: tuple[int, ...], one_group: int = 0, fast: bool = False) -> Network:
    """A block has 1x1, grouped 3x3, and 1x1 with the shortcut; y also has the squeeze between the last two.

    ``one_group``: the blocks of the first stage in which a group is as wide as the stage.
    """
    per_block = 3 if "_y_" in name else 2
    return Network(images(name), sum(depths) * per_block + one_group, residual=sum(depths), fast=fast)


# Dense layers: 1x1, norm, ReLU, 3x3, whose output is concatenated before the next norm.
_DENSENETS = {121: 6 + 12 + 24 + 16, 161: 6 + 12 + 36 + 24, 169: 6 + 12 + 32 + 32, 201: 6 + 12 + 48 + 32}

# Expansions of 16 blocks (the projections are linear) and the last convolution.
_MNASNET = 16 + 1
_MOBILENET_V2 = 16 + 1

# Two 1x1 in each of 13 blocks, one more in the 3 that halve the map, and the last convolution.
_SHUFFLENET = 13 * 2 + 3 * 3 + 1

NETWORKS: dict[str, Network] = {
    "alexnet": Network(images("alexnet", 63), 4 + 2, flattened={"classifier.1": 36}),
    **{f"vgg{depth}{norm}": _vgg(f"vgg{depth}{norm}", depth - 3) for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    "resnet18": _resnet("resnet18", 8, 2, fast=True),
    "resnet34": _resnet("resnet34", 16, 2),
    "resnet50": _resnet("resnet50", 16, 3),
    "resnet101": _resnet("resnet101", 33, 3),
    "resnet152": _resnet("resnet152", 50, 3),
    "wide_resnet50_2": _resnet("wide_resnet50_2", 16, 3),
    "wide_resnet101_2": _resnet("wide_resnet101_2", 33, 3),
    "resnext50_32x4d": _resnet("resnext50_32x4d", 16, 2),
    "resnext101_32x8d": _resnet("resnext101_32x8d", 33, 2),
    "resnext101_64x4d": _resnet("resnext101_64x4d", 33, 2),
    "regnet_x_400mf": _regnet("regnet_x_400mf", (1, 2, 7, 12)),
    "regnet_x_800mf": _regnet("regnet_x_800mf", (1, 3, 7, 5)),
    "regnet_x_1_6gf": _regnet("regnet_x_1_6gf", (2, 4, 10, 2)),
    "regnet_x_3_2gf": _regnet("regnet_x_3_2gf", (2, 6, 15, 2)),
    "regnet_x_8gf": _regnet("regnet_x_8gf", (2, 5, 15, 1), one_group=2),  # 80 channels, groups of 120
    "regnet_x_16gf": _regnet("regnet_x_16gf", (2, 6, 13, 1)),
    "regnet_x_32gf": _regnet("regnet_x_32gf", (2, 7, 13, 1)),
    "regnet_y_400mf": _regnet("regnet_y_400mf", (1, 3, 6, 6), fast=True),
    "regnet_y_800mf": _regnet("regnet_y_800mf", (1, 3, 8, 2)),
    "regnet_y_1_6gf": _regnet("regnet_y_1_6gf", (2, 6, 17, 2)),
    "regnet_y_3_2gf": _regnet("regnet_y_3_2gf", (2, 5, 13, 1)),
    "regnet_y_8gf": _regnet("regnet_y_8gf", (2, 4, 10, 1)),
    "regnet_y_16gf": _regnet("regnet_y_16gf", (2, 4, 11, 1)),
    "regnet_y_32gf": _regnet("regnet_y_32gf", (2, 5, 12, 1), one_group=2),  # 232 channels, groups of 232
    "regnet_y_128gf": _regnet("regnet_y_128gf", (2, 7, 17, 1)),
    **{f"densenet{depth}": Network(images(f"densenet{depth}"), layers) for depth, layers in _DENSENETS.items()},
    # Eight fire modules of three, and the classifier's convolution, which has a ReLU.
    "squeezenet1_0": Network(images("squeezenet1_0"), 8 * 3 + 1, fast=True),
    "squeezenet1_1": Network(images("squeezenet1_1"), 8 * 3 + 1),
    # Two more in the stem and six in each of nine modules.
    "googlenet": Network(images("googlenet", init_weights=False), 2 + 9 * 6, fast=True),
    # Four more in the stem; modules A, B, C, D, E.
    "inception_v3": Network(images("inception_v3", 75, init_weights=False), 4 + 3 * 7 + 4 + 4 * 10 + 6 + 2 * 9),
    "shufflenet_v2_x0_5": Network(images("shufflenet_v2_x0_5"), _SHUFFLENET, fast=True),
    "shufflenet_v2_x1_0": Network(images("shufflenet_v2_x1_0"), _SHUFFLENET),
    "shufflenet_v2_x1_5": Network(images("shufflenet_v2_x1_5"), _SHUFFLENET),
    "shufflenet_v2_x2_0": Network(images("shufflenet_v2_x2_0"), _SHUFFLENET),
    "mnasnet0_5": Network(images("mnasnet0_5"), _MNASNET, fast=True),
    "mnasnet0_75": Network(images("mnasnet0_75"), _MNASNET),
    "mnasnet1_0": Network(images("mnasnet1_0"), _MNASNET),
    "mnasnet1_3": Network(images("mnasnet1_3"), _MNASNET),
    "mobilenet_v2": Network(images("mobilenet_v2"), _MOBILENET_V2, fast=True),
    # Expansions of the blocks with ReLU, and the squeezes, which have one in all blocks.
    "mobilenet_v3_small": Network(images("mobilenet_v3_small"), 2 + 9, fast=True),
    "mobilenet_v3_large": Network(images("mobilenet_v3_large"), 5 + 8),
    # SiLU, also in the squeezes.
    **{f"efficientnet_b{i}": Network(images(f"efficientnet_b{i}"), 0) for i in range(8)},
    **{f"efficientnet_v2_{size}": Network(images(f"efficientnet_v2_{size}"), 0) for size in "sml"},
    # GELU. Swin v2 has a ReLU in the network of its position bias, whose first layer reads coordinates.
    **{f"convnext_{size}": Network(images(f"convnext_{size}"), 0) for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size}": Network(images(f"swin_{size}"), 0) for size in "tsb"},
    **{f"swin_v2_{size}": Network(images(f"swin_v2_{size}"), 0) for size in "tsb"},
    "maxvit_t": Network(images("maxvit_t", 224, input_size=(224, 224)), 0),
    "vit_b_16": Network(images("vit_b_16", image_size=32), 0),
    "vit_b_32": Network(images("vit_b_32", image_size=32), 0),
    "vit_l_16": Network(images("vit_l_16", image_size=32), 0),
    "vit_l_32": Network(images("vit_l_32", image_size=32), 0),
    "vit_h_14": Network(images("vit_h_14", 28, image_size=28), 0),
    "r3d_18": Network(videos("r3d_18", 16, 4), 16, residual=8),
    "mc3_18": Network(videos("mc3_18", 16, 4), 16, residual=8),
    # Each convolution is one in space and one in time with a ReLU between; so is the stem.
    "r2plus1d_18": Network(videos("r2plus1d_18", 16, 4), 16 * 2 + 1, residual=8),
    # The stem's four behind the first; four branches a module, of 1 + 3 + 3 + 1.
    "s3d": Network(_s3d, 4 + 9 * 8),
    # GELU.
    **{name: Network(_mvit(name), 0) for name in ("mvit_v1_b", "mvit_v2_s")},
    **{name: Network(videos(name), 0) for name in ("swin3d_t", "swin3d_s", "swin3d_b")},
}
