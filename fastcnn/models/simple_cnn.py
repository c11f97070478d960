"""The first convolutional network of the lecture "ML/DL for Everyone with PyTorch" (Kim, lecture 10), for MNIST.

The lecture reports 98 % (9846 of 10000) on the MNIST test set with an average loss of 0.0483 after 9 epochs. Its network ends in a
log-softmax; this one returns the logits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import check_input


class SimpleCNN(nn.Module):
    """Two convolutions and a linear layer for (N, 1, 28, 28) images: 8,490 parameters for 10 classes.

    Returns logits (N, num_classes). Raises InputError for any other image shape.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(320, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) -> logits (N, num_classes)."""
        check_input(x, "simple_cnn", channels=1, size=28)
        # N x 1 x 28 x 28
        x = F.relu(self.pool(self.conv1(x)))  # N x 10 x 12 x 12
        x = F.relu(self.pool(self.conv2(x)))  # N x 20 x 4 x 4
        return self.fc(x.flatten(1))  # N x num_classes


def simple_cnn(num_classes: int = 10) -> SimpleCNN:
    """The MNIST network of two convolutions with new random weights; see SimpleCNN."""
    return SimpleCNN(num_classes)
