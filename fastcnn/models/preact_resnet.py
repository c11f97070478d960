"""ResNet-18, -34, -50, -101 and -152 with pre-activation.

Paper: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, https://arxiv.org/abs/1603.05027.

BatchNorm and ReLU come before each convolution, nothing comes after the addition: from block to block the signal passes through
identities alone. Two details are from the paper's appendix. The stem's BatchNorm and ReLU serve as the pre-activation of the first
block, which has none of its own; one more BatchNorm and ReLU follow the last addition. Where a shortcut changes shape, its 1x1
convolution takes the pre-activated signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from fastcnn.models.layers import check_input


class PreActBasicBlock(nn.Module):
    """Two pre-activated 3x3 convolutions around a shortcut: (N, in_channels, H, W) -> (N, channels, H/stride, W/stride).

    `preactivated`: the input has been through BatchNorm and ReLU already.
    """

    expansion: ClassVar[int] = 1
    branch_end: ClassVar[str] = "conv2"

    def __init__(self, in_channels: int, channels: int, stride: int = 1, preactivated: bool = False) -> None:
        super().__init__()
        self.bn1 = None if preactivated else nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection_shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""
        activated = x if self.bn1 is None else self.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.relu(self.bn2(out)))
        out += x if self.downsample is None else self.downsample(activated)
        return out


class PreActBottleneck(nn.Module):
    """Pre-activated 1x1, 3x3, 1x1 convolutions around a shortcut: (N, in_channels, H, W) -> (N, 4 channels, H/stride, W/stride).

    `preactivated`: the input has been through BatchNorm and ReLU already.
    """

    expansion: ClassVar[int] = 4
    branch_end: ClassVar[str] = "conv3"

    def __init__(self, in_channels: int, channels: int, stride: int = 1, preactivated: bool = False) -> None:
        super().__init__()
        self.bn1 = None if preactivated else nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection_shortcut(in_channels, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4 channels, H/stride, W/stride)."""
        activated = x if self.bn1 is None else self.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        out += x if self.downsample is None else self.downsample(activated)
        return out


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    """A 1x1 convolution, without BatchNorm, where the shortcut changes shape; None where it is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class PreActResNet(nn.Module):
    """A pre-activation residual network for (N, 3, 224, 224) images; any size from 1x1 will do.

    Args:
        block: PreActBasicBlock or PreActBottleneck.
        depths: number of blocks in each of the four stages.
        num_classes: width of the logits.

    Returns logits (N, num_classes). Raises InputError for another number of channels.
    """

    def __init__(self, block: type[PreActBasicBlock | PreActBottleneck], depths: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width = block.expansion
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1, preactivated=True)
        self.layer2 = _stage(block, 64 * width, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * width, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * width, 512, depths[3], stride=2)
        self.norm = nn.BatchNorm2d(512 * width)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "PreActResNet")
        # N x 3 x 224 x 224
        x = self.relu(self.bn1(self.conv1(x)))  # N x 64 x 112 x 112
        x = self.maxpool(x)  # N x 64 x 56 x 56
        # Bottlenecks have four times the channels of the figures below.
        x = self.layer1(x)  # N x 64 x 56 x 56
        x = self.layer2(x)  # N x 128 x 28 x 28
        x = self.layer3(x)  # N x 256 x 14 x 14
        x = self.layer4(x)  # N x 512 x 7 x 7
        x = self.relu(self.norm(x))  # N x 512 x 7 x 7
        x = self.avgpool(x).flatten(1)  # N x 512
        return self.fc(x)  # N x num_classes


def _stage(
    block: type[PreActBasicBlock | PreActBottleneck], in_channels: int, channels: int, depth: int, stride: int, preactivated: bool = False
) -> nn.Sequential:
    first = block(in_channels, channels, stride, preactivated)
    return nn.Sequential(first, *(block(channels * block.expansion, channels) for _ in range(depth - 1)))


def preact_resnet18(num_classes: int = 1000) -> PreActResNet:
    """ResNet-18 with pre-activation: 11,687,720 parameters for 1000 classes."""
    return PreActResNet(PreActBasicBlock, (2, 2, 2, 2), num_classes)


def preact_resnet34(num_classes: int = 1000) -> PreActResNet:
    """ResNet-34 with pre-activation: 21,795,880 parameters for 1000 classes."""
    return PreActResNet(PreActBasicBlock, (3, 4, 6, 3), num_classes)


def preact_resnet50(num_classes: int = 1000) -> PreActResNet:
    """ResNet-50 with pre-activation: 25,549,352 parameters for 1000 classes."""
    return PreActResNet(PreActBottleneck, (3, 4, 6, 3), num_classes)


def preact_resnet101(num_classes: int = 1000) -> PreActResNet:
    """ResNet-101 with pre-activation: 44,541,480 parameters for 1000 classes."""
    return PreActResNet(PreActBottleneck, (3, 4, 23, 3), num_classes)


def preact_resnet152(num_classes: int = 1000) -> PreActResNet:
    """ResNet-152 with pre-activation: 60,185,128 parameters for 1000 classes."""
    return PreActResNet(PreActBottleneck, (3, 8, 36, 3), num_classes)
