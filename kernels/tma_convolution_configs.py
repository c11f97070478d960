"""The tile shapes and pixel boxes of the convolution through the tensor memory accelerator (TMA), and the choice where nothing was measured.

A program computes block_m output pixels, a box of images × rows × columns whose sides are powers of two, by block_n + extra_n output channels. What
decides:

- The sides of the output are seldom powers of two, and what a box holds beyond them is computed for nothing. Images are a third direction to tile
  in: with 32 images and more a box may take one column or two of every image, and little or nothing is wasted. `choose_box` finds the box.
- The input is read again from L2 once per tap and once per tile of output channels; rows of the weight, channels and pixels beyond the end are
  filled with zeros by the TMA and cost no traffic. So wide tiles pay even where a part of them is padding.
- Warp specialisation (one warp group loads, two multiply) is Hopper's, needs four warps and 128 channels: Triton splits the weights between the
  multiplying groups, and tiles of 64 channels would be computed by both of them. It is for boxes of pixels in one row
  only: `TmaConfig.suits` says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

# Multiply-adds of the tensor cores in the time that reading one element of 16 bits from L2 takes: 790 TFLOP/s and 5.5 TB/s on an H100.
_READ_COST = 144
# What a tile costs beyond its steps (first loads, epilogue), in multiply-adds: about half a microsecond of one multiprocessor.
_TILE_COST = 1_500_000
# The share of the quicker of the two that the slower one does not hide.
_OVERLAP_LOSS = 0.25


class TmaSize(NamedTuple):
    """A convolution of stride 1: output [images, channels, height, width] over `in_channels` and `taps` = R·S.

    `is_flat`: a 1×1 convolution without padding over pixels that lie in one row, tiled as one image of one row.
    """

    images: int
    height: int
    width: int
    channels: int
    in_channels: int
    taps: int
    is_flat: bool = False


class Box(NamedTuple):
    """The output pixels of one tile: so many images × rows × columns, each a power of two."""

    images: int
    rows: int
    columns: int

    def tiles(self, n: int, p: int, q: int) -> int:
        """Boxes that cover n images of p × q pixels."""
        return -(-n // self.images) * -(-p // self.rows) * -(-q // self.columns)

    def waste(self, n: int, p: int, q: int) -> float:
        """Pixels computed for each pixel that exists: 1.0 where nothing is wasted."""
        return self.tiles(n, p, q) * math.prod(self) / (n * p * q)


@functools.lru_cache(maxsize=4096)
def choose_box(n: int, p: int, q: int, block_m: int) -> Box:
    """The box of `block_m` pixels, a power of two, that covers n images of p × q pixels with the fewest tiles.

    Among equals the one with the fewest images and then the fewest rows: its pixels lie closest together in memory.
    """
    powers = [1 << i for i in range(block_m.bit_length())]
    boxes = [Box(images, rows, block_m // images // rows) for images in powers for rows in powers if images * rows <= block_m]
    return min(boxes, key=lambda box: (box.tiles(n, p, q), box.images, box.rows))


@dataclass(frozen=True)
class TmaConfig:
    """How the convolution is cut.

    Attributes:
        block_m: output pixels of a tile, a power of two.
        block_n, extra_n: output channels of a tile: block_n, 64 or 128, and extra_n, 0 or 64, in an accumulator of their own that shares the pixels.
        block_k: input channels of one step.
        num_warps, num_stages: warps that multiply, for each of the groups where warps are specialised, and steps in flight in shared memory.
        warp_specialize: loads by a warp group of their own, in programs that stay for several tiles.
    """

    block_m: int
    block_n: int
    extra_n: int
    block_k: int
    num_warps: int
    num_stages: int
    warp_specialize: bool = False

    def encode(self) -> list[int]:
        """The configuration as the list of integers that the registered operator takes."""
        tile = [self.block_m, self.block_n, self.extra_n, self.block_k]
        return [*tile, self.num_warps, self.num_stages, int(self.warp_specialize)]

    @classmethod
    def decode(cls, values: Sequence[int]) -> TmaConfig:
        """What `encode` wrote."""
        block_m, block_n, extra_n, block_k, num_warps, num_stages, warp_specialize = values
        return cls(block_m, block_n, extra_n, block_k, num_warps, num_stages, bool(warp_specialize))

    @property
    def channels(self) -> int:
        """Output channels of a tile."""
        return self.block_n + self.extra_n

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of the operands in flight."""
        return (self.block_m + self.channels) * self.block_k * itemsize * self.num_stages

    def box(self, size: TmaSize) -> Box:
        """The box of pixels of one tile."""
        n, p, q = (1, 1, size.images * size.height * size.width) if size.is_flat else size[:3]
        return choose_box(n, p, q, self.block_m)

    def suits(self, size: TmaSize) -> bool:
        """Whether this configuration computes the convolution rightly: with specialised warps the pixels of a tile must
        lie in one row of one image."""
        # A box of several rows or images is reshaped before it is multiplied, and the compiler (Triton 3.6 to 3.9) takes
        # the reshape for the last reader of the buffer: the loading warps overwrite what is still being multiplied.
        return not self.warp_specialize or self.box(size)[:2] == (1, 1)

    def pixel_tiles(self, size: TmaSize) -> int:
        """Tiles that cover the pixels, for one tile of channels."""
        n, p, q = (1, 1, size.images * size.height * size.width) if size.is_flat else size[:3]
        return self.box(size).tiles(n, p, q)


_HOPPER_HALF = (
    TmaConfig(256, 128, 0, 64, 4, 3, True),  # 128 channels and more, many pixels
    TmaConfig(128, 128, 0, 64, 4, 4, True),  # the same with fewer pixels, or with a residual
)
_HALF = (
    TmaConfig(256, 128, 64, 64, 8, 3),  # 192 and 384 channels: pixels are read once for 192
    TmaConfig(256, 128, 0, 64, 8, 3),  # 96 and 128 channels
    TmaConfig(128, 128, 64, 64, 8, 3),  # 160 and 192 channels, fewer pixels
    TmaConfig(128, 128, 0, 64, 8, 3),  # 17×17 at batch 8
    TmaConfig(256, 64, 0, 32, 4, 5),  # 64 channels and fewer from 32, 80 or 96; two programs on a multiprocessor
    TmaConfig(128, 64, 0, 64, 4, 4),  # 64 channels, 8×8 at batch 8
    TmaConfig(64, 64, 0, 64, 4, 6),  # batch 1
    TmaConfig(32, 64, 0, 64, 4, 6),  # batch 1, 8×8: twice the programs
)
_TF32 = (
    TmaConfig(128, 128, 0, 32, 8, 3),  # a row of 32 floats is as long as one of 64 halves
    TmaConfig(128, 64, 0, 32, 4, 4),
    TmaConfig(64, 64, 0, 32, 4, 5),
)


def tma_configs_for(dtype: torch.dtype, capability: int, input_precision: str = "ieee") -> tuple[TmaConfig, ...]:
    """The shipped configurations, widest first; none where the road does not exist.

    Args:
        dtype: of the activations.
        capability: compute capability as 10·major + minor. 90 (wgmma) and 100 to 109 (tcgen05) have the instructions that read both operands where
            the TMA puts them.
        input_precision: looked at for float32 only, which takes this road as "tf32".
    """
    if not (capability == 90 or 100 <= capability < 110):
        return ()
    if dtype.itemsize == 4:
        return _TF32 if input_precision == "tf32" else ()
    return (*_HOPPER_HALF, *_HALF) if capability == 90 else _HALF


def leaves_registers(config: TmaConfig) -> bool:
    """Whether there are registers beside the accumulators for a residual, or for outputs with more than one stride over their pixels."""
    groups = 2 if config.warp_specialize else config.num_warps // 4
    return config.block_m * config.channels // (128 * groups) <= 96


def choose_tma_config(
    size: TmaSize, dtype: torch.dtype, capability: int, input_precision: str = "ieee", multiprocessors: int = 132, needs_registers: bool = False
) -> TmaConfig:
    """The configuration with the least predicted time where nothing was measured: what a call without `config` gets. As `rank_tma_configs`."""
    return rank_tma_configs(size, dtype, capability, input_precision, multiprocessors, needs_registers)[0]


def rank_tma_configs(
    size: TmaSize, dtype: torch.dtype, capability: int, input_precision: str = "ieee", multiprocessors: int = 132, needs_registers: bool = False
) -> list[TmaConfig]:
    """The configurations that suit the convolution by predicted time, the fastest first: a starting point for tuning.

    The prediction: multiprocessors do whole tiles one after the other; multiplying, zeros included, runs beside reading from L2, which leaves out
    what lies beyond the ends, and the slower of the two counts in full.

    Args:
        size: of the convolution.
        dtype, capability, input_precision: as for `tma_configs_for`, which must not be empty.
        multiprocessors: of the GPU; 132 on an H100.
        needs_registers: leave out those that `leaves_registers` does not hold for.
    """

    def cost(config: TmaConfig) -> float:
        pixel_tiles = config.pixel_tiles(size)
        tiles = pixel_tiles * -(-size.channels // config.channels)
        depth = size.taps * -(-size.in_channels // config.block_k) * config.block_k
        products = tiles * config.block_m * config.channels * depth
        reads = size.taps * size.in_channels * (tiles * config.block_m + pixel_tiles * size.channels)
        multiplying, reading = products / max(tiles, 1), _READ_COST * reads / max(tiles, 1)
        each = max(multiplying, reading) + _OVERLAP_LOSS * min(multiplying, reading) + _TILE_COST
        return -(-tiles // multiprocessors) * each

    configs = [config for config in tma_configs_for(dtype, capability, input_precision) if config.suits(size)]
    return sorted((config for config in configs if leaves_registers(config) or not needs_registers), key=cost)
