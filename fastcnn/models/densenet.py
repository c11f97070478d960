"""DenseNet-121, -161, -169 and -201 (DenseNet-BC: with bottlenecks and compressing transitions).

Paper: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
https://arxiv.org/abs/1608.06993. State-dict compatible with torchvision's `densenet*`; checkpoints in the older spelling of the keys
("norm.1" for "norm1"), which are the ones that torchvision publishes, load as well.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import check_input

# The 1x1 convolution of a dense layer gives this many times growth_rate channels.
BOTTLENECK_FACTOR = 4

_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class DenseLayer(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3: (N, in_channels, H, W) -> (N, growth_rate, H, W), the new features only."""

    def __init__(self, in_channels: int, growth_rate: int, drop_rate: float) -> None:
        super().__init__()
        mid = BOTTLENECK_FACTOR * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(mid)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(mid, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, growth_rate, H, W)."""
        x = self.conv1(self.relu1(self.norm1(x)))
        x = self.conv2(self.relu2(self.norm2(x)))
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate > 0 else x


class DenseBlock(nn.ModuleDict):
    """Layers that each see everything before them: (N, in_channels, H, W) -> (N, in_channels + depth growth_rate, H, W)."""

    def __init__(self, depth: int, in_channels: int, growth_rate: int, drop_rate: float) -> None:
        super().__init__({f"denselayer{i + 1}": DenseLayer(in_channels + i * growth_rate, growth_rate, drop_rate) for i in range(depth)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, in_channels + depth growth_rate, H, W)."""
        features = [x]
        for layer in self.values():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def _transition(in_channels: int) -> nn.Sequential:
    """Halves channels and grid: (N, C, H, W) -> (N, C/2, H/2, W/2)."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, stride=2),
        )
    )


class DenseNet(nn.Module):
    """A DenseNet for (N, 3, 224, 224) images; any size from 29x29 will do.

    Args:
        growth_rate: channels that each layer adds.
        depths: number of layers in each of the four blocks.
        stem_channels: channels of the first convolution.
        num_classes: width of the logits.
        drop_rate: dropout probability after each dense layer.

    Returns logits (N, num_classes). Raises InputError for another number of channels or a smaller image.
    """

    def __init__(
        self, growth_rate: int, depths: tuple[int, int, int, int], stem_channels: int, num_classes: int = 1000, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        # Shapes for growth_rate 32 and DenseNet-121; N x 3 x 224 x 224
        stages: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False),  # N x 64 x 112 x 112
            norm0=nn.BatchNorm2d(stem_channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),  # N x 64 x 56 x 56
        )
        channels = stem_channels
        for number, depth in enumerate(depths, start=1):
            # N x 256 x 56 x 56, N x 512 x 28 x 28, N x 1024 x 14 x 14, N x 1024 x 7 x 7
            stages[f"denseblock{number}"] = DenseBlock(depth, channels, growth_rate, drop_rate)
            channels += depth * growth_rate
            if number < len(depths):
                # N x 128 x 28 x 28, N x 256 x 14 x 14, N x 512 x 7 x 7
                stages[f"transition{number}"] = _transition(channels)
                channels //= 2
        stages["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(stages)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "DenseNet", min_size=29)
        x = F.relu(self.features(x), inplace=True)  # N x 1024 x 7 x 7
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)  # N x 1024
        return self.classifier(x)  # N x num_classes

    @staticmethod
    def upgrade_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Respells the keys of checkpoints from before module names could hold no dot: "denselayer1.norm.1." to "denselayer1.norm1."."""
        return {_OLD_KEY.sub(r"\1\2", key): tensor for key, tensor in state.items()}


def densenet121(num_classes: int = 1000, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters for 1000 classes."""
    return DenseNet(32, (6, 12, 24, 16), 64, num_classes, drop_rate)


def densenet161(num_classes: int = 1000, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-161: 28,681,000 parameters for 1000 classes."""
    return DenseNet(48, (6, 12, 36, 24), 96, num_classes, drop_rate)


def densenet169(num_classes: int = 1000, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-169: 14,149,480 parameters for 1000 classes."""
    return DenseNet(32, (6, 12, 32, 32), 64, num_classes, drop_rate)


def densenet201(num_classes: int = 1000, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-201: 20,013,928 parameters for 1000 classes."""
    return DenseNet(32, (6, 12, 48, 32), 64, num_classes, drop_rate)
