"""ResNet18 in its CIFAR form, as in the paper (docs/method.md, section 5)."""

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """A 3x3 stem without max pool, four stages of two blocks, mean pool, linear head: (batch, 3, 32, 32) -> classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem_norm(self.stem(images))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def elementwise_flops(self, images: Tensor) -> int:
        """FLOPs of the batch that the paper's accounting counts besides the products of convolutions and head."""
        height, width = images.shape[-2:]
        total = (3 + 1) * 64 * height * width  # the stem's BatchNorm and ReLU
        for block in self.blocks.children():
            assert isinstance(block, BasicBlock)
            stride, channels = block.conv1.stride[0], block.conv1.out_channels
            height, width = -(-height // stride), -(-width // stride)
            norms = 3 if len(block.shortcut) else 2
            total += (3 * norms + 2 * 1 + 1) * channels * height * width  # norms, two ReLUs, the addition
        total += 2 * self.head.in_features * height * width + self.head.out_features
        return total * images.shape[0]

    def outside_paper_scope(self, images: Tensor) -> int:
        """FLOPs of the batch that the published figure excludes: the stem, its BatchNorm and ReLU."""
        positions = images.shape[-2] * images.shape[-1]
        return (2 * self.stem.weight.numel() + (3 + 1) * 64) * positions * images.shape[0]
