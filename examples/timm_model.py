"""A timm network: which of its layers can be pruned, and what this saves. Replace the random weights by your own."""

import torch

import exprune
import exprune.lab  # repairs torchvision, which timm imports

import timm  # isort: skip

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, depth=2).eval()
images = list(torch.randn(4, 4, 3, 224, 224))

print(exprune.inspect(model, images[0]))
calibration = exprune.calibrate(model, images, measure="kl")
curve = exprune.tradeoff(model, calibration, images)
print(curve)
print(f"{curve.points[-1].flops.saved:.1%} of the FLOPs saved at the highest price")
