"""SqueezeNet 1.0 and 1.1.

Paper: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", 2016,
https://arxiv.org/abs/1602.07360. State-dict compatible with torchvision's `squeezenet1_*`. Version 1.1 is the authors' later one: the
same accuracy for 2.4 times fewer operations. Pools use `ceil_mode=True`, as the Caffe original rounds up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.models.layers import check_input


class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side: (N, in_channels, H, W) -> (N, 2 expand, H, W)."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 2 expand, H, W)."""
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet for (N, 3, 224, 224) images; any size from 21x21 (version 1.0) or 17x17 (1.1) will do.

    Returns logits (N, num_classes), none of them negative: a ReLU stands before the global average pool.
    Raises InputError for another number of channels or a smaller image.
    """

    def __init__(self, features: nn.Sequential, min_size: int, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.min_size = min_size
        self.features = features
        classifier = nn.Conv2d(512, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), classifier, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(classifier.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "SqueezeNet", min_size=self.min_size)
        x = self.features(x)  # N x 512 x 13 x 13
        x = self.classifier(x)  # N x num_classes x 1 x 1
        return x.flatten(1)


def _stem(channels: int, kernel_size: int) -> list[nn.Module]:
    return [nn.Conv2d(3, channels, kernel_size, stride=2), nn.ReLU(inplace=True), _pool()]


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def squeezenet1_0(num_classes: int = 1000, dropout: float = 0.5) -> SqueezeNet:
    """SqueezeNet 1.0: 1,248,424 parameters for 1000 classes."""
    features = nn.Sequential(
        # N x 3 x 224 x 224
        *_stem(96, 7),  # N x 96 x 54 x 54
        Fire(96, 16, 64),  # N x 128 x 54 x 54
        Fire(128, 16, 64),  # N x 128 x 54 x 54
        Fire(128, 32, 128),  # N x 256 x 54 x 54
        _pool(),  # N x 256 x 27 x 27
        Fire(256, 32, 128),  # N x 256 x 27 x 27
        Fire(256, 48, 192),  # N x 384 x 27 x 27
        Fire(384, 48, 192),  # N x 384 x 27 x 27
        Fire(384, 64, 256),  # N x 512 x 27 x 27
        _pool(),  # N x 512 x 13 x 13
        Fire(512, 64, 256),  # N x 512 x 13 x 13
    )
    return SqueezeNet(features, 21, num_classes, dropout)


def squeezenet1_1(num_classes: int = 1000, dropout: float = 0.5) -> SqueezeNet:
    """SqueezeNet 1.1: 1,235,496 parameters for 1000 classes."""
    features = nn.Sequential(
        # N x 3 x 224 x 224
        *_stem(64, 3),  # N x 64 x 55 x 55
        Fire(64, 16, 64),  # N x 128 x 55 x 55
        Fire(128, 16, 64),  # N x 128 x 55 x 55
        _pool(),  # N x 128 x 27 x 27
        Fire(128, 32, 128),  # N x 256 x 27 x 27
        Fire(256, 32, 128),  # N x 256 x 27 x 27
        _pool(),  # N x 256 x 13 x 13
        Fire(256, 48, 192),  # N x 384 x 13 x 13
        Fire(384, 48, 192),  # N x 384 x 13 x 13
        Fire(384, 64, 256),  # N x 512 x 13 x 13
        Fire(512, 64, 256),  # N x 512 x 13 x 13
    )
    return SqueezeNet(features, 17, num_classes, dropout)
