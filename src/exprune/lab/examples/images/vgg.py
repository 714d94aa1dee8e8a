"""VGG11-BN in its CIFAR form, as in the paper (docs/method.md, section 5)."""

from torch import Tensor, nn
from torch.nn import functional as F

# Output channels of the 3x3 convolutions; None is a max pool. The second convolution of each of the last three blocks
# has a BatchNorm, the others have none.
_LAYOUT = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class VGG11BN(nn.Module):
    """Eight convolutions without bias, average pool, dropout, linear head: (batch, 3, H, W) -> (batch, classes)."""

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, previous = 3, 0
        for entry in _LAYOUT:
            if entry is None:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil_mode keeps at least one pixel of small images
            else:
                layers.append(nn.Conv2d(channels, entry, 3, padding=1, bias=False))
                if previous == entry:
                    layers.append(nn.BatchNorm2d(entry))
                layers.append(nn.ReLU(inplace=True))
                channels = entry
            previous = entry or 0
        self.features = nn.Sequential(*layers)
        self.dropout = dropout
        self.head = nn.Linear(channels, classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(F.dropout(x, self.dropout, self.training))

    def elementwise_flops(self, images: Tensor) -> int:
        """FLOPs of the batch that the paper's accounting counts besides the products of convolutions and head."""
        height, width = images.shape[-2:]
        total, channels = 0, 3
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                height, width = -(-height // 2), -(-width // 2)
            elif isinstance(module, nn.Conv2d):
                channels = module.out_channels
            cost = {nn.BatchNorm2d: 3, nn.ReLU: 1, nn.MaxPool2d: 4}.get(type(module), 0)
            total += cost * channels * height * width
        total += 2 * channels * height * width + self.head.out_features
        return total * images.shape[0]

    def outside_paper_scope(self, images: Tensor) -> int:
        """FLOPs of the batch that the published figure excludes."""
        return 0
