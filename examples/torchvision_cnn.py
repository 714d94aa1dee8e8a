"""A torchvision network, trained for seconds on scikit-learn's digits: what pruning its convolutions saves."""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import exprune
import exprune.lab  # repairs torchvision if its operators do not fit the build of torch

from torchvision.models.resnet import BasicBlock, ResNet  # isort: skip

torch.manual_seed(0)
images, labels = (torch.tensor(x) for x in load_digits(return_X_y=True))
images = F.interpolate(images.float().view(-1, 1, 8, 8) / 16, size=32).expand(-1, 3, -1, -1)
model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(2):
    for some in torch.randperm(1000).split(50):
        optimizer.zero_grad()
        F.cross_entropy(model(images[some]), labels[some]).backward()
        optimizer.step()
model.eval()

batches = list(zip(images[:200].split(50), labels[:200].split(50), strict=True))
unseen = list(zip(images[1000:1200].split(50), labels[1000:1200].split(50), strict=True))
calibration = exprune.calibrate(model, batches)
print(exprune.tradeoff(model, calibration, unseen))
