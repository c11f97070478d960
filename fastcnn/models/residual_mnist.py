"""A small residual network for MNIST, from the lecture "PyTorch Tutorial" (Liu, lecture 11).

The lecture reports 99 % (9901 of 10000) on the MNIST test set after 10 epochs.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import check_input


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with bias around an identity shortcut: (N, channels, H, W) -> the same shape."""

    branch_end: ClassVar[str] = "conv2"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ResidualMNIST(nn.Module):
    """Two convolutions, each followed by a residual block, for (N, 1, 28, 28) images: 41,514 parameters for 10 classes.

    Returns logits (N, num_classes). Raises InputError for any other image shape.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5)
        self.residual1 = ResidualBlock(16)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.residual2 = ResidualBlock(32)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> logits (N, num_classes)."""
        check_input(x, "residual_mnist", channels=1, size=28)
        # N x 1 x 28 x 28
        x = self.pool(F.relu(self.conv1(x)))  # N x 16 x 12 x 12
        x = self.residual1(x)  # N x 16 x 12 x 12
        x = self.pool(F.relu(self.conv2(x)))  # N x 32 x 4 x 4
        x = self.residual2(x)  # N x 32 x 4 x 4
        return self.fc(x.flatten(1))  # N x num_classes


def residual_mnist(num_classes: int = 10) -> ResidualMNIST:
    """The small residual network for MNIST with new random weights; see ResidualMNIST."""
    return ResidualMNIST(num_classes)
