"""Random shifts and mirror images, made on whole batches of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_mirror(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) uint8 -> the same: each picture padded with zeros by an eighth of its side and cut out again at a random place.

    Half of the pictures in colour are mirrored; grey ones are digits or letters here, which mirroring would change into others.
    `generator` lives on the CPU, so that every device draws the same.
    """
    count, channels, height, width = pixels.shape
    pad_y, pad_x = height // 8, width // 8
    top = torch.randint(0, 2 * pad_y + 1, (count,), generator=generator)
    left = torch.randint(0, 2 * pad_x + 1, (count,), generator=generator)
    columns = left[:, None] + torch.arange(width)  # N x W
    if channels > 1:
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = top[:, None] + torch.arange(height)  # N x H
    padded = F.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
    device = pixels.device
    picture = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[picture, channel, rows.to(device)[:, None, :, None], columns.to(device)[:, None, None, :]]
