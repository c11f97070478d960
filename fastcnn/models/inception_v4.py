"""Inception-v4.

Paper: Szegedy, Ioffe, Vanhoucke, Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
AAAI 2017, https://arxiv.org/abs/1602.07261. State-dict compatible with timm's `inception_v4`, which has no auxiliary head.

Lineage: from TF-slim, with BatchNorm eps 0.001. Unlike Inception-v3 as PyTorch has it, its average pools do not count their padding.
The published weights take input in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcnn.models.layers import ConvBNReLU, check_input


def _average_pool_3x3() -> nn.AvgPool2d:
    """Same-size average pool over the real pixels only."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class Mixed3a(nn.Module):
    """Pool and strided convolution side by side: (N, 64, 147, 147) -> (N, 160, 73, 73)."""

    def __init__(self) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.conv = ConvBNReLU(64, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) -> (N, 160, (H-1)//2, (W-1)//2)."""
        return torch.cat([self.maxpool(x), self.conv(x)], 1)


class Mixed5a(nn.Module):
    """Strided convolution and pool side by side: (N, 192, 71, 71) -> (N, 384, 35, 35)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvBNReLU(192, 192, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 192, H, W) -> (N, 384, (H-1)//2, (W-1)//2)."""
        return torch.cat([self.conv(x), self.maxpool(x)], 1)


class Branches(nn.Module):
    """A block whose branches, named branch0, branch1 and so on, each take the input and are concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for index, branch in enumerate(branches):
            self.add_module(f"branch{index}", branch)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> the outputs of all branches, (N, sum of their channels, H', W')."""
        return torch.cat([branch(x) for branch in self.children()], 1)


class Mixed4a(Branches):
    """(N, 160, 73, 73) -> (N, 192, 71, 71)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(ConvBNReLU(160, 64, 1), ConvBNReLU(64, 96, 3)),
            nn.Sequential(
                ConvBNReLU(160, 64, 1),
                ConvBNReLU(64, 64, (1, 7), padding=(0, 3)),
                ConvBNReLU(64, 64, (7, 1), padding=(3, 0)),
                ConvBNReLU(64, 96, 3),
            ),
        )


class InceptionA(Branches):
    """35x35 grid: (N, 384, H, W) -> (N, 384, H, W)."""

    def __init__(self) -> None:
        super().__init__(
            ConvBNReLU(384, 96, 1),
            nn.Sequential(ConvBNReLU(384, 64, 1), ConvBNReLU(64, 96, 3, padding=1)),
            nn.Sequential(ConvBNReLU(384, 64, 1), ConvBNReLU(64, 96, 3, padding=1), ConvBNReLU(96, 96, 3, padding=1)),
            nn.Sequential(_average_pool_3x3(), ConvBNReLU(384, 96, 1)),
        )


class ReductionA(Branches):
    """Halves the grid, 35x35 to 17x17: (N, 384, H, W) -> (N, 1024, (H-1)//2, (W-1)//2)."""

    def __init__(self) -> None:
        super().__init__(
            ConvBNReLU(384, 384, 3, stride=2),
            nn.Sequential(ConvBNReLU(384, 192, 1), ConvBNReLU(192, 224, 3, padding=1), ConvBNReLU(224, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )


class InceptionB(Branches):
    """17x17 grid, 7x7 factorised into 1x7 and 7x1: (N, 1024, H, W) -> (N, 1024, H, W)."""

    def __init__(self) -> None:
        super().__init__(
            ConvBNReLU(1024, 384, 1),
            nn.Sequential(ConvBNReLU(1024, 192, 1), ConvBNReLU(192, 224, (1, 7), padding=(0, 3)), ConvBNReLU(224, 256, (7, 1), padding=(3, 0))),
            nn.Sequential(
                ConvBNReLU(1024, 192, 1),
                ConvBNReLU(192, 192, (7, 1), padding=(3, 0)),
                ConvBNReLU(192, 224, (1, 7), padding=(0, 3)),
                ConvBNReLU(224, 224, (7, 1), padding=(3, 0)),
                ConvBNReLU(224, 256, (1, 7), padding=(0, 3)),
            ),
            nn.Sequential(_average_pool_3x3(), ConvBNReLU(1024, 128, 1)),
        )


class ReductionB(Branches):
    """Halves the grid, 17x17 to 8x8: (N, 1024, H, W) -> (N, 1536, (H-1)//2, (W-1)//2)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(ConvBNReLU(1024, 192, 1), ConvBNReLU(192, 192, 3, stride=2)),
            nn.Sequential(
                ConvBNReLU(1024, 256, 1),
                ConvBNReLU(256, 256, (1, 7), padding=(0, 3)),
                ConvBNReLU(256, 320, (7, 1), padding=(3, 0)),
                ConvBNReLU(320, 320, 3, stride=2),
            ),
            nn.MaxPool2d(3, stride=2),
        )


class InceptionC(nn.Module):
    """8x8 grid, branches that fan out into 1x3 and 3x1: (N, 1536, H, W) -> (N, 1536, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = ConvBNReLU(1536, 256, 1)
        self.branch1_0 = ConvBNReLU(1536, 384, 1)
        self.branch1_1a = ConvBNReLU(384, 256, (1, 3), padding=(0, 1))
        self.branch1_1b = ConvBNReLU(384, 256, (3, 1), padding=(1, 0))
        self.branch2_0 = ConvBNReLU(1536, 384, 1)
        self.branch2_1 = ConvBNReLU(384, 448, (3, 1), padding=(1, 0))
        self.branch2_2 = ConvBNReLU(448, 512, (1, 3), padding=(0, 1))
        self.branch2_3a = ConvBNReLU(512, 256, (1, 3), padding=(0, 1))
        self.branch2_3b = ConvBNReLU(512, 256, (3, 1), padding=(1, 0))
        self.branch3 = nn.Sequential(_average_pool_3x3(), ConvBNReLU(1536, 256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1536, H, W) -> (N, 1536, H, W)."""
        branch0 = self.branch0(x)
        stem1 = self.branch1_0(x)
        branch1 = torch.cat([self.branch1_1a(stem1), self.branch1_1b(stem1)], 1)
        stem2 = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        branch2 = torch.cat([self.branch2_3a(stem2), self.branch2_3b(stem2)], 1)
        return torch.cat([branch0, branch1, branch2, self.branch3(x)], 1)


class InceptionV4(nn.Module):
    """Inception-v4 for (N, 3, 299, 299) images; any size from 75x75 will do. 42,679,816 parameters for 1000 classes.

    Returns logits (N, num_classes). Raises InputError for another number of channels or a smaller image.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # N x 3 x 299 x 299
            ConvBNReLU(3, 32, 3, stride=2),  # N x 32 x 149 x 149
            ConvBNReLU(32, 32, 3),  # N x 32 x 147 x 147
            ConvBNReLU(32, 64, 3, padding=1),  # N x 64 x 147 x 147
            Mixed3a(),  # N x 160 x 73 x 73
            Mixed4a(),  # N x 192 x 71 x 71
            Mixed5a(),  # N x 384 x 35 x 35
            *(InceptionA() for _ in range(4)),  # N x 384 x 35 x 35
            ReductionA(),  # N x 1024 x 17 x 17
            *(InceptionB() for _ in range(7)),  # N x 1024 x 17 x 17
            ReductionB(),  # N x 1536 x 8 x 8
            *(InceptionC() for _ in range(3)),  # N x 1536 x 8 x 8
        )
        self.global_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.head_drop = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1536, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        check_input(x, "Inception-v4", min_size=75)
        x = self.features(x)  # N x 1536 x 8 x 8
        x = self.global_pool(x).flatten(1)  # N x 1536
        return self.last_linear(self.head_drop(x))  # N x num_classes


def inception_v4(num_classes: int = 1000, dropout: float = 0.0) -> InceptionV4:
    """Inception-v4 with new random weights; see InceptionV4."""
    return InceptionV4(num_classes, dropout)
