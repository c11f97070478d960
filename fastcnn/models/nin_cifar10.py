"""Network in Network for CIFAR-10, from the lecture "Modern CNNs" (2023).

Paper: Lin, Chen, Yan, "Network In Network", ICLR 2014, https://arxiv.org/abs/1312.4400.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastcnn.models.layers import check_input


class NiNCIFAR10(nn.Module):
    """Four NiN blocks and a global average pool for (N, 3, 32, 32) images: 1,589,926 parameters for 10 classes.

    Any image size from 15x15 will do. Returns logits (N, num_classes), none of them negative: the last block ends in a ReLU as
    every other does. Raises InputError for another number of channels or a smaller image.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # N x 3 x 32 x 32
            _nin_block(3, 96),  # N x 96 x 32 x 32
            nn.MaxPool2d(3, stride=2),  # N x 96 x 15 x 15
            _nin_block(96, 256),  # N x 256 x 15 x 15
            nn.MaxPool2d(3, stride=2),  # N x 256 x 7 x 7
            _nin_block(256, 384),  # N x 384 x 7 x 7
            nn.MaxPool2d(3, stride=2),  # N x 384 x 3 x 3
            nn.Dropout(dropout),
            _nin_block(384, num_classes),  # N x num_classes x 3 x 3
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),  # N x num_classes
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, num_classes)."""
        check_input(x, "nin_cifar10", min_size=15)
        return self.features(x)


def _nin_block(in_channels: int, channels: int) -> nn.Sequential:
    """A 3x3 convolution and two 1x1 convolutions, which act as a small multilayer perceptron at every pixel."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
    )


def nin_cifar10(num_classes: int = 10, dropout: float = 0.5) -> NiNCIFAR10:
    """Network in Network for CIFAR-10 with new random weights; see NiNCIFAR10."""
    return NiNCIFAR10(num_classes, dropout)
