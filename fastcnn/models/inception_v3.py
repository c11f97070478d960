"""Inception-v3.

Paper: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
https://arxiv.org/abs/1512.00567. State-dict compatible with torchvision's `inception_v3`, auxiliary head included.

Lineage: the network came from TF-slim, hence BatchNorm eps 0.001 and average pools that count their padding.

The lecture notes that this model was built from draw it differently: they give block B's 3x3 branch padding 2 where it has
stride 2 and average its pool where it takes the maximum, feed block C's pool projection the unpooled input, and return the
logits concatenated with the auxiliary logits. None of that is in Inception-v3.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.layers import ConvBNReLU, check_input, imagenet_to_unit_range, init_inception_weights

# The auxiliary head's 5x5 convolution needs a 17x17 grid before its pool.
AUX_MIN_SIZE = 299


class InceptionOutputs(NamedTuple):
    """What the model returns in training mode: both (N, num_classes)."""

    logits: Tensor
    aux_logits: Tensor


def _average_pool_3x3(x: Tensor) -> Tensor:
    """Same-size average pool; the zeros of the padding count as pixels."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)


class InceptionA(nn.Module):
    """35x35 grid, figure 5 of the paper: (N, in_channels, H, W) -> (N, 224 + pool_features, H, W)."""

    def __init__(self, in_channels: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBNReLU(in_channels, 64, 1)
        self.branch5x5_1 = ConvBNReLU(in_channels, 48, 1)
        self.branch5x5_2 = ConvBNReLU(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBNReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBNReLU(96, 96, 3, padding=1)
        self.branch_pool = ConvBNReLU(in_channels, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 224 + pool_features, H, W)."""
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = self.branch_pool(_average_pool_3x3(x))
        return torch.cat([branch1x1, branch5x5, branch3x3dbl, branch_pool], 1)


class InceptionB(nn.Module):
    """Halves the grid, 35x35 to 17x17: (N, in_channels, H, W) -> (N, 480 + in_channels, (H-1)//2, (W-1)//2)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBNReLU(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBNReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBNReLU(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 480 + in_channels, (H-1)//2, (W-1)//2)."""
        branch3x3 = self.branch3x3(x)
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = F.max_pool2d(x, kernel_size=3, stride=2)
        return torch.cat([branch3x3, branch3x3dbl, branch_pool], 1)


class InceptionC(nn.Module):
    """17x17 grid, 7x7 factorised into 1x7 and 7x1, figure 6: (N, in_channels, H, W) -> (N, 768, H, W)."""

    def __init__(self, in_channels: int, channels_7x7: int) -> None:
        super().__init__()
        mid = channels_7x7
        self.branch1x1 = ConvBNReLU(in_channels, 192, 1)
        self.branch7x7_1 = ConvBNReLU(in_channels, mid, 1)
        self.branch7x7_2 = ConvBNReLU(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7_3 = ConvBNReLU(mid, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = ConvBNReLU(in_channels, mid, 1)
        self.branch7x7dbl_2 = ConvBNReLU(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = ConvBNReLU(mid, mid, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = ConvBNReLU(mid, mid, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = ConvBNReLU(mid, 192, (1, 7), padding=(0, 3))
        self.branch_pool = ConvBNReLU(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 768, H, W)."""
        branch1x1 = self.branch1x1(x)
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(_average_pool_3x3(x))
        return torch.cat([branch1x1, branch7x7, branch7x7dbl, branch_pool], 1)


class InceptionD(nn.Module):
    """Halves the grid, 17x17 to 8x8: (N, in_channels, H, W) -> (N, 512 + in_channels, (H-1)//2, (W-1)//2)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvBNReLU(in_channels, 192, 1)
        self.branch3x3_2 = ConvBNReLU(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBNReLU(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvBNReLU(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvBNReLU(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvBNReLU(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 512 + in_channels, (H-1)//2, (W-1)//2)."""
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7x3 = self.branch7x7x3_2(self.branch7x7x3_1(x))
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(branch7x7x3))
        branch_pool = F.max_pool2d(x, kernel_size=3, stride=2)
        return torch.cat([branch3x3, branch7x7x3, branch_pool], 1)


class InceptionE(nn.Module):
    """8x8 grid, 3x3 branches that fan out into 1x3 and 3x1, figure 7: (N, in_channels, H, W) -> (N, 2048, H, W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBNReLU(in_channels, 320, 1)
        self.branch3x3_1 = ConvBNReLU(in_channels, 384, 1)
        self.branch3x3_2a = ConvBNReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvBNReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvBNReLU(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvBNReLU(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvBNReLU(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvBNReLU(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBNReLU(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 2048, H, W)."""
        branch1x1 = self.branch1x1(x)
        stem = self.branch3x3_1(x)
        branch3x3 = torch.cat([self.branch3x3_2a(stem), self.branch3x3_2b(stem)], 1)
        stem_dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = torch.cat([self.branch3x3dbl_3a(stem_dbl), self.branch3x3dbl_3b(stem_dbl)], 1)
        branch_pool = self.branch_pool(_average_pool_3x3(x))
        return torch.cat([branch1x1, branch3x3, branch3x3dbl, branch_pool], 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier, used in training only: (N, in_channels, 17, 17) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvBNReLU(in_channels, 128, 1)
        self.conv1 = ConvBNReLU(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 17, 17) -> (N, num_classes)."""
        x = F.avg_pool2d(x, kernel_size=5, stride=3)  # N x 768 x 5 x 5
        x = self.conv0(x)  # N x 128 x 5 x 5
        x = self.conv1(x)  # N x 768 x 1 x 1
        x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)  # N x 768
        return self.fc(x)


class InceptionV3(nn.Module):
    """Inception-v3 for (N, 3, 299, 299) images; any larger size will do, and in eval mode any from 75x75.

    Args:
        num_classes: width of the logits.
        aux_logits: build the auxiliary head. It acts in training mode only and takes no part in inference.
        transform_input: take ImageNet-normalised images and re-normalise them to [-1, 1], the range that the published
            weights were trained in. torchvision switches this on when it loads its weights. The first convolution has no
            padding, so the transform can be folded into it exactly.
        dropout: probability before the last layer.

    Returns logits (N, num_classes) in eval mode; InceptionOutputs(logits, aux_logits) in training mode with the auxiliary head.
    Raises InputError for another number of channels or a smaller image.
    """

    aux_heads: ClassVar[tuple[str, ...]] = ("AuxLogits",)

    def __init__(self, num_classes: int = 1000, aux_logits: bool = True, transform_input: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = ConvBNReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBNReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBNReLU(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvBNReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBNReLU(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.AuxLogits = InceptionAux(768, num_classes) if aux_logits else None
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)

        init_inception_weights(self, std=0.1)
        if self.AuxLogits is not None:
            # torchvision narrows conv1 as well, but marks the unit around it, which its initialisation does not look at.
            nn.init.normal_(self.AuxLogits.fc.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        """(N, 3, H, W) -> logits (N, num_classes), in training mode with those of the auxiliary head."""
        with_aux = self.training and self.AuxLogits is not None
        check_input(x, "Inception-v3", min_size=AUX_MIN_SIZE if with_aux else 75)
        if self.transform_input:
            x = imagenet_to_unit_range(x)
        # N x 3 x 299 x 299
        x = self.Conv2d_1a_3x3(x)  # N x 32 x 149 x 149
        x = self.Conv2d_2a_3x3(x)  # N x 32 x 147 x 147
        x = self.Conv2d_2b_3x3(x)  # N x 64 x 147 x 147
        x = self.maxpool1(x)  # N x 64 x 73 x 73
        x = self.Conv2d_3b_1x1(x)  # N x 80 x 73 x 73
        x = self.Conv2d_4a_3x3(x)  # N x 192 x 71 x 71
        x = self.maxpool2(x)  # N x 192 x 35 x 35
        x = self.Mixed_5b(x)  # N x 256 x 35 x 35
        x = self.Mixed_5c(x)  # N x 288 x 35 x 35
        x = self.Mixed_5d(x)  # N x 288 x 35 x 35
        x = self.Mixed_6a(x)  # N x 768 x 17 x 17
        x = self.Mixed_6b(x)  # N x 768 x 17 x 17
        x = self.Mixed_6c(x)  # N x 768 x 17 x 17
        x = self.Mixed_6d(x)  # N x 768 x 17 x 17
        x = self.Mixed_6e(x)  # N x 768 x 17 x 17
        aux = self.AuxLogits(x) if with_aux and self.AuxLogits is not None else None  # N x num_classes
        x = self.Mixed_7a(x)  # N x 1280 x 8 x 8
        x = self.Mixed_7b(x)  # N x 2048 x 8 x 8
        x = self.Mixed_7c(x)  # N x 2048 x 8 x 8
        x = self.dropout(self.avgpool(x))  # N x 2048 x 1 x 1
        logits = self.fc(x.flatten(1))  # N x num_classes
        return logits if aux is None else InceptionOutputs(logits, aux)


def inception_v3(num_classes: int = 1000, aux_logits: bool = True, transform_input: bool = False, dropout: float = 0.5) -> InceptionV3:
    """Inception-v3 with new random weights; see InceptionV3."""
    return InceptionV3(num_classes, aux_logits, transform_input, dropout)
