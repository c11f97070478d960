"""Our own kernels as implementations: the implicit GEMM, the one through the tensor memory accelerator, and the
stem's."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor

from fastcnn.engines.triton.choices import Variant
from fastcnn.engines.triton.implementations.base import TIMED_CONFIGS
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights
from fastcnn.kernels.convolution import conv2d_bias_relu
from fastcnn.kernels.convolution_configs import ConvConfig, choose_split_k, rank_configs
from fastcnn.kernels.convolution_problem import Convolution
from fastcnn.kernels.launching import device_limits
from fastcnn.kernels.stem import StemConvolution, stem_conv2d
from fastcnn.kernels.tma_convolution import conv2d_tma
from fastcnn.kernels.tma_convolution_configs import TmaConfig, TmaSize, rank_tma_configs, tma_configs_for


class _Kernel:
    """What our kernels have in common: they write where they are told, bias, residual and ReLU included."""

    in_place = True
    compiles_ahead = True

    def leaves_epilogue(self, variant: Variant) -> bool:
        """Never."""
        return False


class TritonConvolution(_Kernel):
    """The implicit GEMM of `fastcnn.kernels.convolution`; a variant is its configuration and the parts of the
    reduction."""

    name = "triton"

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """It has no groups and reads NHWC only."""
        if problem.groups != 1:
            return "grouped convolution"
        return None if problem.input_channels_last else "the input is not channels_last"

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[Variant]:
        """Each configuration with the parts of the reduction that fill the GPU, with half as many, and unsplit."""
        capability, multiprocessors = device_limits(device)
        found = []
        for config in rank_configs([problem.gemm], problem.dtype, problem.precision, capability, multiprocessors)[:most]:
            parts = choose_split_k(config, problem.gemm, multiprocessors)
            found += [(*config.encode(), split) for split in dict.fromkeys((parts, max(1, parts // 2), 1))]
        return found

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> None:
        """One launch, and one more that sums the parts where the reduction is split."""
        *config, split_k = variant
        conv2d_bias_relu(
            _convolution(problem, weights, operands),
            splits=_splits(problem, operands),
            split_k=split_k,
            config=ConvConfig.decode(list(config)),
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """Tile, warps, stages and parts."""
        block_m, block_n, block_k, warps, stages, _, parts = variant
        split = f", split-K {parts}" if parts > 1 else ""
        return f"triton {block_m}×{block_n}×{block_k}, {warps} warps, {stages} stages{split}"


class TritonTma(_Kernel):
    """`fastcnn.kernels.tma_convolution`: stride 1 on Hopper and Blackwell; a variant is its configuration."""

    name = "triton_tma"

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """The accelerator wants pixels at multiples of 16 bytes, and the kernel stride 1."""
        capability, _ = device_limits(device)
        if problem.groups != 1 or problem.stride != (1, 1) or not problem.input_channels_last:
            return "groups, a stride, or an input that is not channels_last"
        if not tma_configs_for(problem.dtype, capability, problem.precision):
            return f"{problem.dtype} ({problem.precision}) on compute capability {capability // 10}.{capability % 10}"
        if not problem.in_aligned or problem.in_channels * problem.dtype.itemsize < 16:
            return "pixels of the input do not start at multiples of 16 bytes"
        return None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[Variant]:
        """Configurations of the tile."""
        capability, multiprocessors = device_limits(device)
        is_flat = problem.kernel == (1, 1) and problem.padding == (0, 0)
        p, q = problem.out_size
        size = TmaSize(problem.batch, p, q, problem.out_channels, problem.in_channels, math.prod(problem.kernel), is_flat)
        ranked = rank_tma_configs(size, problem.dtype, capability, problem.precision, multiprocessors, problem.residual)
        return [tuple(config.encode()) for config in ranked[:most]]

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> None:
        """One launch."""
        conv2d_tma(
            _convolution(problem, weights, operands),
            splits=_splits(problem, operands),
            config=TmaConfig.decode(variant),
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """Tile, warps, stages, and whether warps are specialised."""
        config = TmaConfig.decode(variant)
        special = ", specialised warps" if config.warp_specialize else ""
        return f"triton TMA {config.block_m}×{config.channels}×{config.block_k}, {config.num_warps} warps, {config.num_stages} stages{special}"


class TritonStem(_Kernel):
    """`fastcnn.kernels.stem`: few input channels in any memory format, so the network's input is read as it comes."""

    name = "triton_stem"

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """It keeps all channels of a tap in registers and writes to one destination."""
        if problem.groups != 1 or problem.in_channels > 4:
            return "more than 4 input channels, or groups"
        if problem.dilation != (1, 1) or problem.residual or len(problem.pieces) > 1:
            return "dilation, a residual or several destinations"
        return None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[Variant]:
        """One: the kernel picks its tile itself."""
        return [()]

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> None:
        """One launch."""
        stem_conv2d(
            StemConvolution(operands.x, weights.stem, weights.bias, problem.stride, problem.padding, relu=problem.relu),
            out=operands.destinations[0],
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """Always the same."""
        return "triton stem"


def _convolution(problem: ConvProblem, weights: ConvWeights, operands: ConvOperands) -> Convolution:
    """As our kernels take it."""
    geometry = (problem.stride, problem.padding, problem.dilation)
    return Convolution(operands.x, weights.packed, weights.bias, *geometry, operands.residual, problem.relu)


def _splits(problem: ConvProblem, operands: ConvOperands) -> list[tuple[int, int, Tensor]]:
    """Output channels start … stop and where they go."""
    bounds = list(accumulate(problem.pieces, initial=0))
    return list(zip(bounds[:-1], bounds[1:], operands.destinations, strict=True))
