"""Images: digits and CIFAR-10, VGG11-BN and ResNet18, and methods of their training recipes."""
