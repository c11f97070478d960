"""A VGG for CIFAR-10, from the lecture "Modern CNNs" (2023), after Simonyan and Zisserman, https://arxiv.org/abs/1409.1556.

The lecture calls it VGG16, but it has 8 convolutions and 3 linear layers, as VGG-11 does.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import check_input

# (convolutions, channels) of each block; a max-pool ends it.
BLOCKS = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))


class VGGCIFAR10(nn.Module):
    """Five VGG blocks and three linear layers for (N, 3, 32, 32) images: 9,750,922 parameters for 10 classes.

    Returns logits (N, num_classes). Raises InputError for any other image shape.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        blocks = []
        channels = 3
        for convolutions, width in BLOCKS:
            blocks.append(_vgg_block(convolutions, channels, width))
            channels = width
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, num_classes)."""
        check_input(x, "vgg_cifar10", size=32)
        # N x 3 x 32 x 32
        x = self.features(x)  # N x 512 x 1 x 1; each block halves the grid
        return self.classifier(x)  # N x num_classes


def _vgg_block(convolutions: int, in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers, nn.MaxPool2d(2, stride=2))


def vgg_cifar10(num_classes: int = 10, dropout: float = 0.5) -> VGGCIFAR10:
    """The VGG for CIFAR-10 with new random weights; see VGGCIFAR10."""
    return VGGCIFAR10(num_classes, dropout)
