"""A convolution as a problem to be solved: its sizes and strides, and the tensors that an implementation gets.

What makes two convolutions the same work is in `ConvProblem.key`: they share what was measured, in this process and, on
disk, in others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.kernels.convolution_configs import ConvSize
from fastcnn.kernels.convolution_problem import CHANNEL_MULTIPLE, pack_weight
from fastcnn.kernels.stem import pack_stem_weight
from fastcnn.precision import round_to_tf32


@dataclass(frozen=True)
class ConvProblem:
    """One convolution at one batch size. Two steps with equal problems are the same work, and share what was measured.

    Attributes:
        in_pitch, out_pitches: elements from one pixel to the next, of the input and of each destination (more than its
            channels for a slice).
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
        """(P, Q): height and width of the output."""
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
        """The matrix product that it is: its rows, columns, and what it sums over."""
        p, q = self.out_size
        return ConvSize(self.batch * p * q, self.out_channels, self.in_channels, math.prod(self.kernel))

    @property
    def input_is_scattered(self) -> bool:
        """Whether the input is no channels_last tensor of its own: a slice of other channels, or planes. What reads
        only such a tensor copies it."""
        return self.in_pitch > self.in_channels or not (self.input_channels_last or self.in_channels == 1)

    @property
    def precision(self) -> str:
        """`input_precision` of our kernels."""
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
        parts += [] if self.in_aligned else ["unaligned"]
        return " ".join(parts)


@dataclass
class ConvOperands:
    """The tensors of one convolution at run time; `destinations` in the order of the pieces."""

    x: Tensor
    residual: Tensor | None
    destinations: tuple[Tensor, ...]


@dataclass
class ConvWeights:
    """The weight of a step in every form that an implementation asked for, each made once.

    Args:
        tf32: our kernels read it as TF32. They truncate what they read, so their forms are rounded beforehand.
    """

    step: ConvolutionStep
    tf32: bool = False
    _packed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bias(self) -> Tensor | None:
        """[K], in the dtype of the weight."""
        return self.step.bias

    @property
    def channels_last(self) -> Tensor:
        """[K, C/groups, R, S], as libraries read it."""
        return self._get("channels_last", lambda weight: weight.contiguous(memory_format=torch.channels_last))

    @property
    def packed(self) -> Tensor:
        """[K, R, S, C_padded], as our kernels read it."""
        return self._get("packed", lambda weight: _pack(self._rounded(weight)))

    @property
    def stem(self) -> Tensor:
        """As the stem's kernel reads it: see `fastcnn.kernels.stem.pack_stem_weight`."""
        return self._get("stem", lambda weight: pack_stem_weight(self._rounded(weight)))

    @property
    def bias_float32(self) -> Tensor:
        """[K], zeros where there is no bias."""
        bias = self.step.bias
        return self._get(
            "bias_float32",
            lambda weight: torch.zeros(len(weight), device=weight.device) if bias is None else bias.to(torch.float32, copy=True),
        )

    def _get(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        if name not in self._packed:
            self._packed[name] = make(self.step.weight)
        return self._packed[name]

    def _rounded(self, weight: Tensor) -> Tensor:
        return round_to_tf32(weight) if self.tf32 else weight

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
