"""What several architectures share: the convolution-BatchNorm-ReLU unit, the Inception input transform, and input checks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.errors import InputError
from fastcnn.models.registry import IMAGENET_MEAN, IMAGENET_STD

# The Inception families were trained in TensorFlow with this value; PyTorch's own default is 1e-5.
INCEPTION_BN_EPS = 0.001


class ConvBNReLU(nn.Module):
    """Convolution without bias, BatchNorm (eps 0.001), ReLU: the unit that the Inception networks are made of.

    (N, in_channels, H, W) -> (N, out_channels, H', W'), where `stride` and `padding` set H' and W'.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=INCEPTION_BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def imagenet_to_unit_range(x: Tensor) -> Tensor:
    """Re-normalises (N, 3, H, W) from ImageNet mean and standard deviation to mean 0.5 and deviation 0.5, i.e. to [-1, 1].

    This is what `transform_input=True` does. The constants stay Python floats, so that a float64 model gets them unrounded.
    """
    scales = [std / 0.5 for std in IMAGENET_STD]
    shifts = [(mean - 0.5) / 0.5 for mean in IMAGENET_MEAN]
    return torch.cat([x[:, channel].unsqueeze(1) * scales[channel] + shifts[channel] for channel in range(3)], 1)


def init_inception_weights(model: nn.Module, std: float) -> None:
    """Draws the weights of every convolution and linear layer from a normal distribution with deviation `std`.

    torchvision asks for the truncated normal on [-2, 2], in absolute units: with deviations of 0.1 and below the bounds lie at
    least 20 deviations out and never act, so the plain normal is the same distribution and several times faster to draw.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=std)


def check_input(x: Tensor, model: str, *, channels: int = 3, min_size: int = 1, size: int | None = None) -> None:
    """Raises InputError unless `x` is (N, channels, H, W) with H and W at least `min_size`, or exactly `size`.

    Looks at static dimensions only: it adds no node to a captured graph and no guard on a symbolic dimension.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # sizes are tensors there, and comparing them would be recorded
        return
    shape = tuple(x.shape)
    fits = len(shape) == 4 and shape[1] == channels
    if fits:
        static = [length for length in shape[2:] if isinstance(length, int)]
        fits = all(length == size if size is not None else length >= min_size for length in static)
    if not fits:
        wanted = f"H and W {f'equal to {size}' if size is not None else f'of at least {min_size}'}"
        # Inside torch.export the batch is a symbol, which is nothing to show.
        found = ", ".join(str(length) if isinstance(length, int) else "N" for length in shape)
        raise InputError(f"{model} takes images of shape (N, {channels}, H, W) with {wanted}, not ({found})")
