"""The tile shapes that the convolution kernels ship with, each with its reason, and the choice among them where nothing was measured.

A program computes BLOCK_M pixels × BLOCK_N output channels and walks the reduction over taps and input channels in steps of BLOCK_K. What decides:

- The input is read again from L2 once per tap and once per tile of output channels, so wide tiles pay in layers with many channels.
- A layer with few pixels (17×17 at batch 1 has 289) needs small tiles, or most multiprocessors stand idle; then a split reduction.
- A step that is wider than the channels left over multiplies zeros: BLOCK_K of 32 wastes a sixth of 80 channels, 64 wastes three eighths.
- BLOCK_M of 64 and four warps is the least that Hopper's warpgroup instruction (wgmma) and Blackwell's tcgen05 take.

Every configuration compiles for the architectures that `configs_for` names it for, without spills (tests/kernels/test_convolution_compiled.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

# Shared memory that one program may have, bytes, by compute capability (CUDA C++ Programming Guide, technical specifications).
SHARED_MEMORY = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 103: 232_448, 120: 101_376}

# A launch that fills no more than this share of the multiprocessors is worth splitting.
_FULL_ENOUGH = 0.5
# A split part keeps at least this many steps: below, writing and reading the partial sums costs more than the steps.
_LEAST_STEPS = 4
_MOST_PARTS = 16


class ConvSize(NamedTuple):
    """A convolution as a GEMM: output pixels N·P·Q by output channels K over input channels C and taps R·S."""

    pixels: int
    channels: int
    in_channels: int
    taps: int


@dataclass(frozen=True)
class ConvConfig:
    """How the convolution kernel is cut.

    Attributes:
        block_m, block_n, block_k: pixels, output channels and input channels of one step.
        num_warps, num_stages: warps of a program, and steps in flight in shared memory.
        channels_outer: walk all taps of one block of channels before the next block, so that the pixels that neighbouring taps share are
            read while they are still in L1; otherwise all channels of a tap before the next tap.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    channels_outer: bool = False

    def encode(self) -> list[int]:
        """The configuration as the list of integers that the registered operator takes."""
        return [self.block_m, self.block_n, self.block_k, self.num_warps, self.num_stages, int(self.channels_outer)]

    @classmethod
    def decode(cls, values: list[int]) -> ConvConfig:
        """What `encode` wrote."""
        block_m, block_n, block_k, num_warps, num_stages, channels_outer = values
        return cls(block_m, block_n, block_k, num_warps, num_stages, bool(channels_outer))

    def shared_bytes(self, itemsize: int, capability: int) -> int:
        """Shared memory of the operands in flight."""
        buffers = self.num_stages if capability in _WARPGROUP_MMA else self.num_stages - 1
        return (self.block_m + self.block_n) * self.block_k * itemsize * buffers

    def tiles(self, size: ConvSize) -> int:
        """Programs of one launch."""
        return math.ceil(size.pixels / self.block_m) * math.ceil(size.channels / self.block_n)

    def steps(self, size: ConvSize) -> int:
        """Steps of the reduction of one tile."""
        return size.taps * math.ceil(size.in_channels / self.block_k)


# Compute capabilities whose tensor cores read operands and keep sums outside the register file of a warp (wgmma, tcgen05); the others, sm_120 among
# them, have mma.sync, which holds the operands of a step in registers.
_WARPGROUP_MMA = range(90, 120)

_WARPGROUP_HALF = (ConvConfig(128, 256, 32, 8, 4),)  # 192 channels and more, many pixels: the input is read once. Spills with mma.sync
_HALF = (
    ConvConfig(128, 128, 64, 8, 3),  # 96-192 channels; fits the 99 KB of sm_89
    ConvConfig(128, 64, 64, 4, 3),  # 64 channels
    ConvConfig(128, 64, 32, 4, 4),  # 64 channels from 32, 80 or 96: no step of zeros
    ConvConfig(128, 32, 32, 4, 4),  # 32 channels and less
    ConvConfig(64, 128, 64, 4, 3),  # few pixels, many channels: 17×17 and 8×8 at batch 8
    ConvConfig(64, 64, 64, 4, 4),  # batch 1
    ConvConfig(64, 32, 64, 4, 5),  # batch 1, 17×17 and 8×8: twice the programs
    ConvConfig(64, 32, 32, 4, 4),  # batch 1, 48 or 80 input channels
)
_TF32 = (
    ConvConfig(128, 128, 32, 8, 3),  # as fp16: a row of 32 floats is as long as one of 64 halves
    ConvConfig(128, 64, 32, 4, 3),
    ConvConfig(128, 32, 32, 4, 4),
    ConvConfig(64, 64, 32, 4, 4),
    ConvConfig(64, 32, 32, 4, 4),
)
# Without tensor cores both operands pass through registers: small steps and, but for one, two stages, or they spill.
_IEEE = (
    ConvConfig(128, 64, 16, 8, 2),  # many pixels
    ConvConfig(64, 64, 16, 4, 3),
    ConvConfig(64, 32, 16, 4, 2),  # few pixels or few channels
)


def configs_for(dtype: torch.dtype, input_precision: str = "ieee", capability: int = 90) -> tuple[ConvConfig, ...]:
    """The shipped configurations, widest first.

    Args:
        dtype: of the activations.
        input_precision: "ieee" or "tf32"; looked at for float32 only.
        capability: compute capability as 10·major + minor; an unknown one is taken for the next older known one.
    """
    configs = _HALF if dtype.itemsize == 2 else _TF32 if input_precision == "tf32" else _IEEE
    if dtype.itemsize == 2 and capability in _WARPGROUP_MMA:
        configs = (*_WARPGROUP_HALF, *configs)
    known = [limit for version, limit in sorted(SHARED_MEMORY.items()) if version <= capability]
    limit = known[-1] if known else min(SHARED_MEMORY.values())
    return tuple(config for config in configs if config.shared_bytes(dtype.itemsize, capability) <= limit)


def choose_config(
    sizes: Sequence[ConvSize], dtype: torch.dtype, input_precision: str = "ieee", capability: int = 90, multiprocessors: int = 132
) -> ConvConfig:
    """The configuration with the least predicted time where nothing was measured: what a call without `config` gets. As `rank_configs`."""
    return rank_configs(sizes, dtype, input_precision, capability, multiprocessors)[0]


def rank_configs(
    sizes: Sequence[ConvSize], dtype: torch.dtype, input_precision: str = "ieee", capability: int = 90, multiprocessors: int = 132
) -> list[ConvConfig]:
    """The shipped configurations by predicted time, the fastest first: a starting point for tuning.

    The prediction: every multiprocessor does whole tiles one after the other, and a tile costs its multiply-adds, the zeros among them,
    plus what reading its operands from L2 costs.

    Args:
        sizes: of the convolutions of one launch.
        dtype, input_precision, capability: as for `configs_for`.
        multiprocessors: of the GPU; 132 on an H100.
    """

    def cost(config: ConvConfig) -> float:
        # H100 in fp16: an L2 read of one element takes a multiprocessor about as long as 100 multiply-adds of its tensor cores.
        step = config.block_k * (config.block_m * config.block_n + 100 * (config.block_m + config.block_n))
        tiles = sum(config.tiles(size) for size in sizes)
        work = sum(config.tiles(size) * config.steps(size) * step for size in sizes)
        longest = max(config.steps(size) for size in sizes) * step
        return max(longest, math.ceil(tiles / multiprocessors) * work / max(tiles, 1))

    return sorted(configs_for(dtype, input_precision, capability), key=cost)


def choose_split_k(config: ConvConfig, size: ConvSize, multiprocessors: int = 132) -> int:
    """Parts to split the reduction into, 1 for none: as many as still give every multiprocessor one program, each part at least four steps long."""
    tiles = config.tiles(size)
    if tiles == 0 or tiles > _FULL_ENOUGH * multiprocessors:
        return 1
    return max(1, min(multiprocessors // tiles, config.steps(size) // _LEAST_STEPS, _MOST_PARTS))
