"""GoogLeNet, the first Inception network, with BatchNorm.

Paper: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842. State-dict compatible with
torchvision's `googlenet`, auxiliary heads included.

Lineage: the published weights came from TF-slim. From there the model has BatchNorm (eps 0.001) in place of the paper's local
response normalisation, pools with `ceil_mode=True`, and a 3x3 kernel in the branch that the paper calls "5x5". The blog post that
this model was built from shows that 3x3 kernel without a word; it departs from the paper, and it is what the weights need.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import ConvBNReLU, check_input, imagenet_to_unit_range, init_inception_weights


class GoogLeNetOutputs(NamedTuple):
    """What the model returns in training mode: each (N, num_classes), the head nearer to the output first."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class Inception(nn.Module):
    """Four branches, concatenated: (N, in_channels, H, W) -> (N, c1 + c2[1] + c3[1] + c4, H, W).

    `c2` and `c3` are (reduced, output) channels: a 1x1 convolution reduces before a 3x3 convolution in both. The names are those of
    the paper's table in order: 1x1 | 3x3 | "5x5" (really 3x3, see above) | pool projection.
    """

    def __init__(self, in_channels: int, c1: int, c2: tuple[int, int], c3: tuple[int, int], c4: int) -> None:
        super().__init__()
        self.branch1 = ConvBNReLU(in_channels, c1, 1)
        self.branch2 = nn.Sequential(ConvBNReLU(in_channels, c2[0], 1), ConvBNReLU(c2[0], c2[1], 3, padding=1))
        self.branch3 = nn.Sequential(ConvBNReLU(in_channels, c3[0], 1), ConvBNReLU(c3[0], c3[1], 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), ConvBNReLU(in_channels, c4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, c1 + c2[1] + c3[1] + c4, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """An auxiliary classifier, used in training only: (N, in_channels, 14, 14) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 14, 14) -> (N, num_classes)."""
        x = F.adaptive_avg_pool2d(x, (4, 4))  # N x in_channels x 4 x 4
        x = self.conv(x).flatten(1)  # N x 2048
        x = F.relu(self.fc1(x), inplace=True)  # N x 1024
        return self.fc2(self.dropout(x))


class GoogLeNet(nn.Module):
    """GoogLeNet for (N, 3, 224, 224) images; any size from 15x15 will do.

    Args:
        num_classes: width of the logits.
        aux_logits: build the two auxiliary heads. They act in training mode only and take no part in inference.
        transform_input: take ImageNet-normalised images and re-normalise them to [-1, 1], the range that the published
            weights were trained in. torchvision switches this on when it loads its weights. The first convolution pads with
            zeros, after the transform: so the transform cannot be folded into it exactly.
        dropout: probability before the last layer.
        dropout_aux: probability inside the auxiliary heads.

    Returns logits (N, num_classes) in eval mode; GoogLeNetOutputs(logits, aux_logits2, aux_logits1) in training mode with the
    auxiliary heads. Raises InputError for another number of channels or a smaller image.
    """

    aux_heads: ClassVar[tuple[str, ...]] = ("aux1", "aux2")

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
    ) -> None:
        super().__init__()
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.conv1 = ConvBNReLU(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvBNReLU(64, 64, 1)
        self.conv3 = ConvBNReLU(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.aux1 = InceptionAux(512, num_classes, dropout_aux) if aux_logits else None
        self.aux2 = InceptionAux(528, num_classes, dropout_aux) if aux_logits else None
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        init_inception_weights(self, std=0.01)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        """(N, 3, H, W) -> logits (N, num_classes), in training mode with those of the auxiliary heads."""
        check_input(x, "GoogLeNet", min_size=15)
        if self.transform_input:
            x = imagenet_to_unit_range(x)
        # N x 3 x 224 x 224
        x = self.conv1(x)  # N x 64 x 112 x 112
        x = self.maxpool1(x)  # N x 64 x 56 x 56
        x = self.conv2(x)  # N x 64 x 56 x 56
        x = self.conv3(x)  # N x 192 x 56 x 56
        x = self.maxpool2(x)  # N x 192 x 28 x 28
        x = self.inception3a(x)  # N x 256 x 28 x 28
        x = self.inception3b(x)  # N x 480 x 28 x 28
        x = self.maxpool3(x)  # N x 480 x 14 x 14
        x = self.inception4a(x)  # N x 512 x 14 x 14
        aux1 = self.aux1(x) if self.training and self.aux1 is not None else None  # N x num_classes
        x = self.inception4b(x)  # N x 512 x 14 x 14
        x = self.inception4c(x)  # N x 512 x 14 x 14
        x = self.inception4d(x)  # N x 528 x 14 x 14
        aux2 = self.aux2(x) if self.training and self.aux2 is not None else None  # N x num_classes
        x = self.inception4e(x)  # N x 832 x 14 x 14
        x = self.maxpool4(x)  # N x 832 x 7 x 7
        x = self.inception5a(x)  # N x 832 x 7 x 7
        x = self.inception5b(x)  # N x 1024 x 7 x 7
        x = self.avgpool(x).flatten(1)  # N x 1024
        logits = self.fc(self.dropout(x))  # N x num_classes
        return logits if aux1 is None or aux2 is None else GoogLeNetOutputs(logits, aux2, aux1)


def googlenet(
    num_classes: int = 1000, aux_logits: bool = True, transform_input: bool = False, dropout: float = 0.2, dropout_aux: float = 0.7
) -> GoogLeNet:
    """GoogLeNet with new random weights; see GoogLeNet."""
    return GoogLeNet(num_classes, aux_logits, transform_input, dropout, dropout_aux)
