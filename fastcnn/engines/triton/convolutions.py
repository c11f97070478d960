"""The ways to compute one convolution: what each can do, which of its variants are worth timing, and how it is launched.

An implementation that is `in_place` writes its output channels where the plan wants them. A library convolution brings its result in memory of its
own; where that is a member of a concat, the launch that copies it there applies bias and ReLU on the way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.engines.triton.cudnn_graph import CudnnGraphConvolution
from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.errors import UnknownNameError
from fastcnn.kernels.convolution import conv2d_bias_relu
from fastcnn.kernels.convolution_configs import ConvConfig, ConvSize, choose_split_k, rank_configs
from fastcnn.kernels.convolution_problem import CHANNEL_MULTIPLE, Convolution, pack_weight
from fastcnn.kernels.launching import device_limits
from fastcnn.kernels.stem import StemConvolution, pack_stem_weight, stem_conv2d
from fastcnn.kernels.tma_convolution import conv2d_tma
from fastcnn.kernels.tma_convolution_configs import TmaConfig, TmaSize, rank_tma_configs, tma_configs_for

# Configurations of one kernel that are timed, those predicted to be the fastest.
TIMED_CONFIGS = 4


@dataclass(frozen=True)
class ConvProblem:
    """One convolution at one batch size. Two steps with equal problems are the same work, and share what was measured.

    Attributes:
        in_pitch, out_pitches: elements from one pixel to the next, of the input and of each destination (more than its channels for a slice).
        pieces: output channels of each destination.
        input_channels_last: False for a network's input as its caller hands it over.
        in_aligned: every pixel of the input starts at a multiple of 16 bytes.
        tf32: float32 products with inputs rounded to 10 bits.
        concats: for each piece, into how many concats it must be copied where it is not written in place.
        bare: that copy is its only reader, and may apply bias and ReLU.
    """

    dtype: torch.dtype
    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    relu: bool
    residual: bool
    in_pitch: int
    pieces: tuple[int, ...]
    out_pitches: tuple[int, ...]
    input_channels_last: bool = True
    tf32: bool = False
    in_aligned: bool = True
    concats: tuple[int, ...] = ()
    bare: bool = False

    @functools.cached_property
    def out_size(self) -> tuple[int, int]:
        p, q = (
            (size + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate((self.height, self.width))
        )
        return p, q

    @property
    def flops(self) -> int:
        """Of the multiply-adds, two each."""
        p, q = self.out_size
        return 2 * self.batch * p * q * self.out_channels * self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def bytes(self) -> int:
        """Moved when input, weights and residual are read once and the output is written once."""
        p, q = self.out_size
        pixels = self.batch * p * q * self.out_channels
        inputs = self.batch * self.height * self.width * self.in_channels
        weights = self.out_channels * self.in_channels // self.groups * math.prod(self.kernel)
        return (inputs + weights + pixels * (2 if self.residual else 1)) * self.dtype.itemsize

    @property
    def gemm(self) -> ConvSize:
        p, q = self.out_size
        return ConvSize(self.batch * p * q, self.out_channels, self.in_channels, math.prod(self.kernel))

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else "ieee"

    @property
    def key(self) -> str:
        """The problem in one line, the same in every process and version of Python: the name of a cached choice."""

        def times(pair: tuple[int, int]) -> str:
            return f"{pair[0]}x{pair[1]}"

        parts = [
            str(self.dtype).removeprefix("torch.") + ("-tf32" if self.tf32 else ""),
            f"n{self.batch}",
            f"c{self.in_channels}@{self.in_pitch}" + ("" if self.input_channels_last else "-nchw"),
            f"in{self.height}x{self.width}",
            "k" + "+".join(f"{channels}@{pitch}" for channels, pitch in zip(self.pieces, self.out_pitches, strict=True)),
            f"f{times(self.kernel)}",
            f"s{times(self.stride)}",
            f"p{times(self.padding)}",
            f"d{times(self.dilation)}",
        ]
        parts += [f"g{self.groups}"] if self.groups > 1 else []
        parts += [name for name in ("bias", "relu", "residual", "bare") if getattr(self, name)]
        parts += ["concats" + "+".join(map(str, self.concats))] if any(self.concats) else []
        return " ".join(parts)


@dataclass
class ConvOperands:
    """The tensors of one convolution at run time; `destinations` in the order of the pieces."""

    x: Tensor
    residual: Tensor | None
    destinations: tuple[Tensor, ...]


@dataclass
class ConvWeights:
    """The weight of a step in every form that an implementation asked for, each made once."""

    step: ConvolutionStep
    _packed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bias(self) -> Tensor | None:
        return self.step.bias

    @property
    def channels_last(self) -> Tensor:
        """[K, C/groups, R, S], as libraries read it."""
        return self._get("channels_last", lambda weight: weight.contiguous(memory_format=torch.channels_last))

    @property
    def packed(self) -> Tensor:
        """[K, R, S, C_padded], as our kernels read it."""
        return self._get("packed", _pack)

    @property
    def stem(self) -> Tensor:
        return self._get("stem", pack_stem_weight)

    @property
    def bias_float32(self) -> Tensor:
        """[K], zeros where there is no bias."""
        bias = self.step.bias
        return self._get(
            "bias_float32",
            lambda weight: torch.zeros(len(weight), device=weight.device) if bias is None else bias.to(torch.float32, copy=True),
        )

    def _get(self, name: str, make: object) -> Tensor:
        if name not in self._packed:
            self._packed[name] = make(self.step.weight)  # type: ignore[operator]
        return self._packed[name]

    def bytes(self) -> int:
        """Of the forms that are held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._packed.values())


def _pack(weight: Tensor) -> Tensor:
    """`pack_weight`, without a copy where a channels_last weight lies in that order already."""
    k, c, r, s = weight.shape
    if c % CHANNEL_MULTIPLE or not weight.permute(0, 2, 3, 1).is_contiguous():
        return pack_weight(weight)
    # The strides of dimensions of size 1 can be anything, and kernels read them.
    return weight.as_strided((k, r, s, c), (r * s * c, s * c, c, 1))


class Implementation(Protocol):
    """One way to compute a convolution. `variants` are tuples of integers, so that a choice can be stored."""

    name: str
    in_place: bool

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """Why it cannot compute this problem there, or None."""

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[tuple[int, ...]]:
        """Worth timing, the one predicted to be fastest first; of kernel configurations at most so many, or all of them."""

    def run(self, problem: ConvProblem, variant: Sequence[int], weights: ConvWeights, operands: ConvOperands) -> Tensor | None:
        """Computes into the destinations and gives None, or gives a new tensor [N, K, P, Q]."""

    def label(self, problem: ConvProblem, variant: Sequence[int]) -> str:
        """For the plan."""


class TritonConvolution:
    """The implicit GEMM of `fastcnn.kernels.convolution`; a variant is its configuration and the parts of the reduction."""

    name = "triton"
    in_place = True

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        if problem.groups != 1:
            return "grouped convolution"
        return None if problem.input_channels_last else "the input is not channels_last"

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[tuple[int, ...]]:
        capability, multiprocessors = device_limits(device)
        found = []
        for config in rank_configs([problem.gemm], problem.dtype, problem.precision, capability, multiprocessors)[:most]:
            parts = choose_split_k(config, problem.gemm, multiprocessors)
            found += [(*config.encode(), split) for split in dict.fromkeys((parts, max(1, parts // 2), 1))]
        return found

    def run(self, problem: ConvProblem, variant: Sequence[int], weights: ConvWeights, operands: ConvOperands) -> None:
        *config, split_k = variant
        conv2d_bias_relu(
            _convolution(problem, weights, operands),
            splits=_splits(problem, operands),
            split_k=split_k,
            config=ConvConfig.decode(list(config)),
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Sequence[int]) -> str:
        block_m, block_n, block_k, warps, stages, _, parts = variant
        split = f", split-K {parts}" if parts > 1 else ""
        return f"triton {block_m}×{block_n}×{block_k}, {warps} warps, {stages} stages{split}"


class TritonTma:
    """`fastcnn.kernels.tma_convolution`: stride 1 on Hopper and Blackwell; a variant is its configuration."""

    name = "triton_tma"
    in_place = True

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        capability, _ = device_limits(device)
        if problem.groups != 1 or problem.stride != (1, 1) or not problem.input_channels_last:
            return "groups, a stride, or an input that is not channels_last"
        if not tma_configs_for(problem.dtype, capability, problem.precision):
            return f"{problem.dtype} ({problem.precision}) on compute capability {capability // 10}.{capability % 10}"
        if not problem.in_aligned or problem.in_channels * problem.dtype.itemsize < 16:
            return "pixels of the input do not start at multiples of 16 bytes"
        return None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[tuple[int, ...]]:
        capability, multiprocessors = device_limits(device)
        is_flat = problem.kernel == (1, 1) and problem.padding == (0, 0)
        p, q = problem.out_size
        size = TmaSize(problem.batch, p, q, problem.out_channels, problem.in_channels, math.prod(problem.kernel), is_flat)
        ranked = rank_tma_configs(size, problem.dtype, capability, problem.precision, multiprocessors, problem.residual)
        return [tuple(config.encode()) for config in ranked[:most]]

    def run(self, problem: ConvProblem, variant: Sequence[int], weights: ConvWeights, operands: ConvOperands) -> None:
        conv2d_tma(
            _convolution(problem, weights, operands),
            splits=_splits(problem, operands),
            config=TmaConfig.decode(variant),
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Sequence[int]) -> str:
        config = TmaConfig.decode(variant)
        special = ", specialised warps" if config.warp_specialize else ""
        return f"triton TMA {config.block_m}×{config.channels}×{config.block_k}, {config.num_warps} warps, {config.num_stages} stages{special}"


class TritonStem:
    """`fastcnn.kernels.stem`: few input channels in any memory format, so the network's input is read as it comes."""

    name = "triton_stem"
    in_place = True

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        if problem.groups != 1 or problem.in_channels > 4:
            return "more than 4 input channels, or groups"
        if problem.dilation != (1, 1) or problem.residual or len(problem.pieces) > 1:
            return "dilation, a residual or several destinations"
        return None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[tuple[int, ...]]:
        return [()]

    def run(self, problem: ConvProblem, variant: Sequence[int], weights: ConvWeights, operands: ConvOperands) -> None:
        stem_conv2d(
            StemConvolution(operands.x, weights.stem, weights.bias, problem.stride, problem.padding, relu=problem.relu),
            out=operands.destinations[0],
            input_precision=problem.precision,
        )

    def label(self, problem: ConvProblem, variant: Sequence[int]) -> str:
        return "triton stem"


class LibraryConvolution:
    """cuDNN's convolution with bias, residual and ReLU in one call on a GPU, ATen's operations elsewhere.

    Variants: 0, cuDNN's fused call; 1, convolution, addition and ReLU one after the other, which keeps NaN where the fused ReLU loses it;
    2, convolution only, where the copy into a concat applies bias and ReLU.
    """

    name = "library"
    in_place = False

    FUSED, SEPARATE, BARE = 0, 1, 2

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        # DenseNet's features stand in dozens of concats: in place they are written once.
        most = max(problem.concats, default=0)
        return f"its result would be copied into {most} concats" if most > 1 and problem.groups == 1 else None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[tuple[int, ...]]:
        if problem.bare:
            return [(self.BARE,)]
        has_fused = device.type == "cuda" and problem.relu
        return [(self.FUSED,), (self.SEPARATE,)] if has_fused else [(self.SEPARATE,)]

    def run(self, problem: ConvProblem, variant: Sequence[int], weights: ConvWeights, operands: ConvOperands) -> Tensor:
        x = operands.x.contiguous(memory_format=torch.channels_last)
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        if variant[0] == self.FUSED:
            if operands.residual is not None:
                return torch.cudnn_convolution_add_relu(x, weights.channels_last, operands.residual, 1.0, weights.bias, *geometry)
            return torch.cudnn_convolution_relu(x, weights.channels_last, weights.bias, *geometry)
        y = F.conv2d(x, weights.channels_last, None if variant[0] == self.BARE else weights.bias, *geometry)
        if variant[0] == self.SEPARATE:
            if operands.residual is not None:
                y += operands.residual
            if problem.relu:
                y.relu_()
        return y.contiguous(memory_format=torch.channels_last)

    def label(self, problem: ConvProblem, variant: Sequence[int]) -> str:
        if variant[0] == self.FUSED:
            return "cudnn_convolution_add_relu" if problem.residual else "cudnn_convolution_relu"
        extras = [name for name in ("residual", "relu") if getattr(problem, name)] if variant[0] == self.SEPARATE else []
        return " + ".join(["aten::conv2d", *extras])


def _convolution(problem: ConvProblem, weights: ConvWeights, operands: ConvOperands) -> Convolution:
    """As our kernels take it."""
    geometry = (problem.stride, problem.padding, problem.dilation)
    return Convolution(operands.x, weights.packed, weights.bias, *geometry, operands.residual, problem.relu)


def _splits(problem: ConvProblem, operands: ConvOperands) -> list[tuple[int, int, Tensor]]:
    """Output channels start … stop and where they go."""
    bounds = list(accumulate(problem.pieces, initial=0))
    return list(zip(bounds[:-1], bounds[1:], operands.destinations, strict=True))


_ALL: tuple[Implementation, ...] = (TritonConvolution(), TritonTma(), TritonStem(), CudnnGraphConvolution(), LibraryConvolution())
BY_NAME = {implementation.name: implementation for implementation in _ALL}


def implementations(names: Sequence[str]) -> tuple[Implementation, ...]:
    """By name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    for name in names:
        if name not in BY_NAME:
            raise UnknownNameError("convolution implementation", name, BY_NAME)
    return tuple(BY_NAME[name] for name in dict.fromkeys(names))
