"""VGG-11, -13, -16 and -19, each plain and with BatchNorm.

Paper: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556. State-dict compatible with torchvision's `vgg*`: with an adaptive average pool before the
classifier, so that other image sizes than 224x224 will do.

The lecture that these models were built from prints 138,423,208 parameters for VGG-16: a spurious 65,664 stands on the row of a
max-pool. The network has 138,357,544.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import check_input

CHANNELS = (64, 128, 256, 512, 512)

# Number of 3x3 convolutions in each of the five blocks, by depth; the paper's configurations A, B, D and E.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """A VGG for (N, 3, 224, 224) images; any size from 32x32 will do.

    Args:
        depth: 11, 13, 16 or 19.
        batch_norm: a BatchNorm after every convolution.
        num_classes: width of the logits.
        dropout: probability after each hidden linear layer.

    Returns logits (N, num_classes). Raises InputError for another number of channels or a smaller image.
    """

    def __init__(self, depth: int, batch_norm: bool, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = _features(CONVOLUTIONS[depth], batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "VGG", min_size=32)
        # N x 3 x 224 x 224; the five blocks give
        # N x 64 x 112 x 112, N x 128 x 56 x 56, N x 256 x 28 x 28, N x 512 x 14 x 14 and
        x = self.features(x)  # N x 512 x 7 x 7
        x = self.avgpool(x).flatten(1)  # N x 25088
        return self.classifier(x)  # N x num_classes


def _features(convolutions: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for repeats, channels in zip(convolutions, CHANNELS, strict=True):
        for _ in range(repeats):
            layers.append(nn.Conv2d(in_channels, channels, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)


def vgg11(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-11: 132,863,336 parameters for 1000 classes."""
    return VGG(11, False, num_classes, dropout)


def vgg11_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-11 with BatchNorm: 132,868,840 parameters for 1000 classes."""
    return VGG(11, True, num_classes, dropout)


def vgg13(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-13: 133,047,848 parameters for 1000 classes."""
    return VGG(13, False, num_classes, dropout)


def vgg13_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-13 with BatchNorm: 133,053,736 parameters for 1000 classes."""
    return VGG(13, True, num_classes, dropout)


def vgg16(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-16: 138,357,544 parameters for 1000 classes."""
    return VGG(16, False, num_classes, dropout)


def vgg16_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-16 with BatchNorm: 138,365,992 parameters for 1000 classes."""
    return VGG(16, True, num_classes, dropout)


def vgg19(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-19: 143,667,240 parameters for 1000 classes."""
    return VGG(19, False, num_classes, dropout)


def vgg19_bn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """VGG-19 with BatchNorm: 143,678,248 parameters for 1000 classes."""
    return VGG(19, True, num_classes, dropout)
