"""Networks by name: SpikingVGG, 6Conv2FC, SEW-ResNet, MS-ResNet, MLP, LeNet."""
