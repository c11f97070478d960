"""ResNet-18 for CIFAR-10, from the lecture "Modern CNNs" (2023), after He et al., https://arxiv.org/abs/1512.03385.

It departs from the ImageNet model of this package as the lecture does: every convolution has a bias, and the 1x1 convolution of a
shortcut is not followed by BatchNorm.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import check_input


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut: (N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""

    branch_end: ClassVar[str] = "bn2"

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(in_channels, channels, 1, stride=stride) if in_channels != channels else None
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.conv3 is None else self.conv3(x)
        return F.relu(out)


class ResNet18CIFAR10(nn.Module):
    """Eight residual blocks for (N, 3, 32, 32) images: 11,184,650 parameters for 10 classes.

    Any image size from 1x1 will do. Returns logits (N, num_classes). Raises InputError for another number of channels.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        self.b2 = nn.Sequential(Residual(64, 64), Residual(64, 64))
        self.b3 = nn.Sequential(Residual(64, 128, stride=2), Residual(128, 128))
        self.b4 = nn.Sequential(Residual(128, 256, stride=2), Residual(256, 256))
        self.b5 = nn.Sequential(Residual(256, 512, stride=2), Residual(512, 512))
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(512, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "resnet18_cifar10")
        # N x 3 x 32 x 32
        x = self.stem(x)  # N x 64 x 8 x 8
        x = self.b2(x)  # N x 64 x 8 x 8
        x = self.b3(x)  # N x 128 x 4 x 4
        x = self.b4(x)  # N x 256 x 2 x 2
        x = self.b5(x)  # N x 512 x 1 x 1
        return self.last(x)  # N x num_classes


def resnet18_cifar10(num_classes: int = 10) -> ResNet18CIFAR10:
    """ResNet-18 for CIFAR-10 with new random weights; see ResNet18CIFAR10."""
    return ResNet18CIFAR10(num_classes)
