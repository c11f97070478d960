"""A small Inception network for MNIST, from the lectures "ML/DL for Everyone with PyTorch" (Kim, 10-1) and "PyTorch Tutorial" (Liu, 11).

Kim reports 99 % (9866 of 10000) on the MNIST test set with a loss of 0.0470; Liu 9888 after 9 epochs and 9866 after 10.

Both argue for the 1x1 convolution by counting 192 maps of 28x28 going to 32 maps: 120,422,400 multiplications by a 5x5 convolution
alone, 12,443,648 through 16 maps. Liu prints 12,433,648 for the latter, which is a slip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import check_input


class InceptionA(nn.Module):
    """Four branches, concatenated: (N, in_channels, H, W) -> (N, 88, H, W). Biases, no BatchNorm, no ReLU inside."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5_2 = nn.Conv2d(16, 24, 5, padding=2)
        self.branch3x3_1 = nn.Conv2d(in_channels, 16, 1)
        self.branch3x3_2 = nn.Conv2d(16, 24, 3, padding=1)
        self.branch3x3_3 = nn.Conv2d(24, 24, 3, padding=1)
        self.branch_pool = nn.Conv2d(in_channels, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 88, H, W)."""
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x)))
        branch_pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([branch1x1, branch5x5, branch3x3, branch_pool], 1)


class InceptionMNIST(nn.Module):
    """Two convolutions, each followed by an Inception block, for (N, 1, 28, 28) images: 97,298 parameters for 10 classes.

    Returns logits (N, num_classes). Raises InputError for any other image shape.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.inception1 = InceptionA(10)
        self.conv2 = nn.Conv2d(88, 20, 5)
        self.inception2 = InceptionA(20)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(1408, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> logits (N, num_classes)."""
        check_input(x, "inception_mnist", channels=1, size=28)
        # N x 1 x 28 x 28
        x = F.relu(self.pool(self.conv1(x)))  # N x 10 x 12 x 12
        x = self.inception1(x)  # N x 88 x 12 x 12
        x = F.relu(self.pool(self.conv2(x)))  # N x 20 x 4 x 4
        x = self.inception2(x)  # N x 88 x 4 x 4
        return self.fc(x.flatten(1))  # N x num_classes


def inception_mnist(num_classes: int = 10) -> InceptionMNIST:
    """The small Inception network for MNIST with new random weights; see InceptionMNIST."""
    return InceptionMNIST(num_classes)
