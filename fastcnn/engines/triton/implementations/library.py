"""PyTorch's own convolution: cuDNN's on a GPU. It covers what our kernels do not (groups), and brings its results in
memory of its own."""

from __future__ import annotations

import enum

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.engines.triton.choices import Variant
from fastcnn.engines.triton.implementations.base import TIMED_CONFIGS
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem, ConvWeights


class LibraryVariant(enum.IntEnum):
    """How much of relu(conv2d(x) + bias + residual) one call of the library computes. The numbers are those of stored
    choices."""

    FUSED = 0
    """All of it, in cuDNN's fused call; its ReLU loses NaN."""
    SEPARATE = 1
    """Convolution with bias; addition and ReLU follow it as operations of their own, which keep NaN."""
    BARE = 2
    """The convolution only: the copy into a concat applies bias and ReLU."""


class LibraryConvolution:
    """cuDNN's convolution with bias, residual and ReLU in one call on a GPU, ATen's operations elsewhere. A variant is
    a `LibraryVariant`."""

    name = "library"
    in_place = False
    compiles_ahead = False

    def why_not(self, problem: ConvProblem, device: torch.device) -> str | None:
        """DenseNet's features stand in dozens of concats: in place they are written once."""
        most = max(problem.concats, default=0)
        return f"its result would be copied into {most} concats" if most > 1 and problem.groups == 1 else None

    def variants(self, problem: ConvProblem, device: torch.device, most: int | None = TIMED_CONFIGS) -> list[Variant]:
        """Bare where a copy is the only reader; else fused where cuDNN can, and separate."""
        if problem.bare:
            return [(LibraryVariant.BARE,)]
        has_fused = device.type == "cuda" and problem.relu
        return [(LibraryVariant.FUSED,), (LibraryVariant.SEPARATE,)] if has_fused else [(LibraryVariant.SEPARATE,)]

    def leaves_epilogue(self, variant: Variant) -> bool:
        """Only the bare convolution does."""
        return variant[0] == LibraryVariant.BARE

    def run(self, problem: ConvProblem, variant: Variant, weights: ConvWeights, operands: ConvOperands) -> Tensor:
        """A new channels_last tensor. An input that lies between other channels or is not channels_last is copied
        first, for libraries read neither: `label` says so, and the operands that candidates are timed on lie as the
        problem says, so the copy is part of what is measured."""
        x = operands.x.contiguous(memory_format=torch.channels_last)
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        if variant[0] == LibraryVariant.FUSED:
            if operands.residual is not None:
                return torch.cudnn_convolution_add_relu(x, weights.channels_last, operands.residual, 1.0, weights.bias, *geometry)
            return torch.cudnn_convolution_relu(x, weights.channels_last, weights.bias, *geometry)
        y = F.conv2d(x, weights.channels_last, None if variant[0] == LibraryVariant.BARE else weights.bias, *geometry)
        if variant[0] == LibraryVariant.SEPARATE:
            if operands.residual is not None:
                y += operands.residual
            if problem.relu:
                y.relu_()
        return y.contiguous(memory_format=torch.channels_last)

    def label(self, problem: ConvProblem, variant: Variant) -> str:
        """The operations, and whether the input is copied before them."""
        copied = " (input copied)" if problem.input_is_scattered else ""
        if variant[0] == LibraryVariant.FUSED:
            return f"cudnn_convolution_{'add_' if problem.residual else ''}relu{copied}"
        extras = [name for name in ("residual", "relu") if getattr(problem, name)] if variant[0] == LibraryVariant.SEPARATE else []
        return " + ".join(["aten::conv2d", *extras]) + copied
