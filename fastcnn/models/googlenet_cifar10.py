"""GoogLeNet for CIFAR-10, from the lecture "Modern CNNs" (2023), after Szegedy et al., https://arxiv.org/abs/1409.4842.

Closer to the paper than the ImageNet model of this package: biases instead of BatchNorm and true 5x5 kernels in branch 3. Local
response normalisation is left out and every max-pool is padded by 1, as in the lecture.

What the lecture has wrong: it ends without a classifier, so that its main output is 1024 wide (here a linear layer follows); its code
shows a 5x5 average pool in the auxiliary heads, which cannot run on their 2x2 input and is absent from its own layer table; and its
validation loop overwrites the running loss.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.googlenet import GoogLeNetOutputs
from fastcnn.models.layers import check_input


class Inception(nn.Module):
    """Four branches with a ReLU after each convolution: (N, in_channels, H, W) -> (N, c1 + c2[1] + c3[1] + c4, H, W)."""

    def __init__(self, in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> None:
        super().__init__()
        self.b1_1 = nn.Conv2d(in_channels, c1, 1)
        self.b2_1 = nn.Conv2d(in_channels, c2[0], 1)
        self.b2_2 = nn.Conv2d(c2[0], c2[1], 3, padding=1)
        self.b3_1 = nn.Conv2d(in_channels, c3[0], 1)
        self.b3_2 = nn.Conv2d(c3[0], c3[1], 5, padding=2)
        self.b4_1 = nn.MaxPool2d(3, stride=1, padding=1)
        self.b4_2 = nn.Conv2d(in_channels, c4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, c1 + c2[1] + c3[1] + c4, H, W)."""
        branch1 = F.relu(self.b1_1(x))
        branch2 = F.relu(self.b2_2(F.relu(self.b2_1(x))))
        branch3 = F.relu(self.b3_2(F.relu(self.b3_1(x))))
        branch4 = F.relu(self.b4_2(self.b4_1(x)))
        return torch.cat([branch1, branch2, branch3, branch4], 1)


class InceptionAux(nn.Module):
    """An auxiliary classifier, used in training only: (N, in_channels, 2, 2) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 128, 1)
        self.fc = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Dropout(dropout), nn.Linear(1024, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 2, 2) -> (N, num_classes)."""
        x = self.conv(x).flatten(1)  # N x 512
        return self.fc(x)


class GoogLeNetCIFAR10(nn.Module):
    """GoogLeNet for (N, 3, 32, 32) images: 7,188,302 parameters for 10 classes.

    Of these the trunk has 5,973,552, the two auxiliary heads 1,204,500 and the classifier 10,250.

    Args:
        num_classes: width of the logits.
        aux_logits: build the two auxiliary heads, after 4a and 4d. They act in training mode only.
        dropout_aux: probability inside the auxiliary heads.

    Returns logits (N, num_classes) in eval mode; GoogLeNetOutputs(logits, aux_logits2, aux_logits1) in training mode with the
    auxiliary heads. Raises InputError for any other image shape.
    """

    aux_heads: ClassVar[tuple[str, ...]] = ("aux1", "aux2")

    def __init__(self, num_classes: int = 10, aux_logits: bool = True, dropout_aux: float = 0.5) -> None:
        super().__init__()
        self.aux_logits = aux_logits
        self.stem = nn.Sequential(
            # N x 3 x 32 x 32
            nn.Conv2d(3, 64, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),  # N x 64 x 8 x 8
            nn.Conv2d(64, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),  # N x 192 x 4 x 4
        )
        self.inception3a_to_4a = nn.Sequential(
            Inception(192, 64, (96, 128), (16, 32), 32),  # 3a: N x 256 x 4 x 4
            Inception(256, 128, (128, 192), (32, 96), 64),  # 3b: N x 480 x 4 x 4
            nn.MaxPool2d(3, stride=2, padding=1),  # N x 480 x 2 x 2
            Inception(480, 192, (96, 208), (16, 48), 64),  # 4a: N x 512 x 2 x 2
        )
        self.aux1 = InceptionAux(512, num_classes, dropout_aux) if aux_logits else None
        self.inception4b_to_4d = nn.Sequential(
            Inception(512, 160, (112, 224), (24, 64), 64),  # 4b: N x 512 x 2 x 2
            Inception(512, 128, (128, 256), (24, 64), 64),  # 4c: N x 512 x 2 x 2
            Inception(512, 112, (144, 288), (32, 64), 64),  # 4d: N x 528 x 2 x 2
        )
        self.aux2 = InceptionAux(528, num_classes, dropout_aux) if aux_logits else None
        self.inception4e_to_5b = nn.Sequential(
            Inception(528, 256, (160, 320), (32, 128), 128),  # 4e: N x 832 x 2 x 2
            nn.MaxPool2d(3, stride=2, padding=1),  # N x 832 x 1 x 1
            Inception(832, 256, (160, 320), (32, 128), 128),  # 5a: N x 832 x 1 x 1
            Inception(832, 384, (192, 384), (48, 128), 128),  # 5b: N x 1024 x 1 x 1
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),  # N x 1024
        )
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """(N, 3, 32, 32) -> logits (N, num_classes), in training mode with those of the auxiliary heads."""
        check_input(x, "googlenet_cifar10", size=32)
        x = self.stem(x)  # N x 192 x 4 x 4
        x = self.inception3a_to_4a(x)  # N x 512 x 2 x 2
        aux1 = self.aux1(x) if self.training and self.aux1 is not None else None  # N x num_classes
        x = self.inception4b_to_4d(x)  # N x 528 x 2 x 2
        aux2 = self.aux2(x) if self.training and self.aux2 is not None else None  # N x num_classes
        x = self.inception4e_to_5b(x)  # N x 1024
        logits = self.fc(x)  # N x num_classes
        return logits if aux1 is None or aux2 is None else GoogLeNetOutputs(logits, aux2, aux1)


def googlenet_cifar10(num_classes: int = 10, aux_logits: bool = True, dropout_aux: float = 0.5) -> GoogLeNetCIFAR10:
    """GoogLeNet for CIFAR-10 with new random weights; see GoogLeNetCIFAR10."""
    return GoogLeNetCIFAR10(num_classes, aux_logits, dropout_aux)
