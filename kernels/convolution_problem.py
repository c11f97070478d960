"""What every convolution kernel shares: the packed weight, the window, the checks of a problem, its destinations, and its reference in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_configs import ConvConfig, ConvSize, choose_config
from fastcnn.kernels.convolution_kernels import Destination
from fastcnn.kernels.launching import (
    ceil_div,
    check_activation,
    check_bias,
    check_channels_last,
    check_output,
    device_limits,
    passes_int32,
    pixel_strides,
)
from fastcnn.kernels.operators import Operator, Outputs, Result

# What every convolution operator takes first, as torch.library writes it.
SCHEMA = "Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, Tensor? residual, bool relu"
# Channels of a packed weight: rows then start on 16-byte boundaries whatever the dtype.
CHANNEL_MULTIPLE = 16
MAX_DESTINATIONS = 4
INPUT_PRECISIONS = ("ieee", "tf32")

Pair = int | Sequence[int]
Split = tuple[int, int, Tensor]


class Convolution(NamedTuple):
    """One convolution: relu(bias + residual + weight * x).

    Attributes:
        x: [N, C, H, W], float16, bfloat16 or float32, channels_last or a channel slice of it.
        weight: [K, R, S, C_padded] from `pack_weight`, of the dtype of x.
        bias: [K], float32 or the dtype of x.
        stride, padding, dilation: one number, or (vertical, horizontal).
        residual: [N, K, P, Q], added before the ReLU; channels_last or a slice of it.
        relu: whether to clamp at 0; NaN stays NaN.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    residual: Tensor | None = None
    relu: bool = True

    def window(self, operator: str) -> Window:
        """The kernel size that the weight has, with stride, padding and dilation.

        Raises:
            InputError: the weight is not packed, or a number is out of range.
        """
        return make_window(operator, self.weight, self.stride, self.padding, self.dilation)

    def in_schema(self) -> tuple[Any, ...]:
        """The fields as operators take them, in the order of `SCHEMA`: geometry as lists."""
        geometry = (list(make_pair(value)) for value in (self.stride, self.padding, self.dilation))
        return (self.x, self.weight, self.bias, *geometry, self.residual, self.relu)


class Window(NamedTuple):
    """Kernel size, stride, padding and dilation, each (vertical, horizontal)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """P and Q for an input of `height` × `width`."""
        p, q = (
            (length + 2 * self.padding[i] - self.dilation[i] * (self.size[i] - 1) - 1) // self.stride[i] + 1
            for i, length in enumerate((height, width))
        )
        return p, q

    def out_shape(self, operator: str, x: Tensor, weight: Tensor) -> list[int]:
        """[N, K, P, Q] for x [N, C, H, W] and a packed weight.

        Raises:
            InputError: x is smaller than the window.
        """
        shape = [x.shape[0], weight.shape[0], *self.out_size(x.shape[2], x.shape[3])]
        if min(shape[2:]) < 1:
            raise InputError(f"{operator}: x of shape {list(x.shape)} is smaller than the window {self}")
        return shape

    def keeps_pixels(self) -> bool:
        """Whether output pixel i reads input pixel i and no other."""
        return self.size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def constants(self) -> dict[str, int]:
        """The compile-time arguments of the kernel."""
        names = ("R", "S"), ("STRIDE_H", "STRIDE_W"), ("PAD_H", "PAD_W"), ("DILATION_H", "DILATION_W")
        return {name: value for pair, values in zip(names, self, strict=True) for name, value in zip(pair, values, strict=True)}


def pack_weight(weight: Tensor) -> Tensor:
    """The weight [K, C, R, S] as the kernels read it: a new tensor [K, R, S, C_padded], contiguous, C padded with zeros to a multiple of 16."""
    if weight.dim() != 4 or weight.numel() == 0:
        raise InputError(f"pack_weight: weight must have the shape [K, C, R, S] without a zero, got {list(weight.shape)}")
    k, c, r, s = weight.shape
    packed = weight.new_zeros(k, r, s, -(-c // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)
    packed[..., :c] = weight.permute(0, 2, 3, 1)
    return packed


def make_pair(value: Pair) -> tuple[int, int]:
    """(vertical, horizontal); a single number stands for both."""
    vertical, horizontal = (value, value) if isinstance(value, int) else value
    return vertical, horizontal


def make_window(operator: str, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Window:
    """The window of a packed weight [K, R, S, C_padded].

    Raises:
        InputError: the weight is not packed, or a number is out of range.
    """
    if weight.dim() != 4:
        raise InputError(f"{operator}: weight must come from pack_weight, [K, R, S, C], got {list(weight.shape)}")
    window = Window((weight.shape[1], weight.shape[2]), make_pair(stride), make_pair(padding), make_pair(dilation))
    if min(window.stride) < 1 or min(window.dilation) < 1 or min(window.padding) < 0:
        raise InputError(f"{operator}: stride and dilation must be positive and padding not negative, got {window}")
    return window


def check_input_precision(operator: str, input_precision: str) -> None:
    """Refuses an unknown input precision.

    Raises:
        InputError: names it.
    """
    if input_precision not in INPUT_PRECISIONS:
        raise InputError(f"{operator}: input_precision must be one of {', '.join(INPUT_PRECISIONS)}, got {input_precision!r}")


def check_problem(operator: str, convolution: Convolution) -> Result:
    """Refuses what the kernels cannot read, and gives the shape [N, K, P, Q] of the result.

    Raises:
        InputError: names the tensor and its shape.
    """
    x, weight, residual, window = convolution.x, convolution.weight, convolution.residual, convolution.window(operator)
    check_activation(operator, "x", x)
    check_channels_last(operator, x)
    n, c, h, w = x.shape
    padded = -(-c // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    if weight.shape[3] != padded or not weight.is_contiguous():
        raise InputError(
            f"{operator}: weight must come from pack_weight, [K, R, S, {padded}] and contiguous for x of shape "
            f"{list(x.shape)}, got {list(weight.shape)}"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise InputError(f"{operator}: weight is {weight.dtype} on {weight.device}, expected {x.dtype} on {x.device}")
    check_bias(operator, "bias", convolution.bias, weight.shape[0], x)
    shape = window.out_shape(operator, x, weight)
    image = c + (h - 1) * abs(x.stride(2)) + (w - 1) * abs(x.stride(3))
    if passes_int32(image) or passes_int32(weight.numel()) or passes_int32(n * shape[2] * shape[3] + 1024):
        raise InputError(f"{operator}: x of shape {list(x.shape)} is too large: one image, the weight and N·P·Q must each count fewer than 2^31")
    if residual is not None:
        check_activation(operator, "residual", residual, like=x)
        if list(residual.shape) != shape or (residual.stride(1) != 1 and shape[1] > 1):
            raise InputError(
                f"{operator}: residual must have the shape {shape} and be channels_last or a channel slice of it, "
                f"got {list(residual.shape)} with strides {residual.stride()}"
            )
    return Result(operator, shape, x)


def check_destinations(operator: str, outs: Sequence[Tensor], starts: Sequence[int], shape: Sequence[int], x: Tensor) -> None:
    """Refuses destinations that do not take every output channel exactly once, in order, each in its own tensor.

    Raises:
        InputError: names the channels that are missing or taken twice.
    """
    if not 1 <= len(outs) <= MAX_DESTINATIONS:
        raise InputError(f"{operator}: one launch writes to 1 to {MAX_DESTINATIONS} destinations, got {len(outs)}")
    n, k, p, q = shape
    for i, (start, stop) in enumerate(zip(starts, [*starts[1:], k], strict=True)):
        if start >= stop or (i == 0 and start != 0):
            raise InputError(f"{operator}: splits must take each of the {k} output channels once and in order, they start at {list(starts)}")
        check_output(operator, outs[i], [n, stop - start, p, q], x)


SCATTERED = Outputs("Tensor(a!)[] outs, SymInt[] starts", check_destinations, lambda out: ([out], [0]))


def pick_config(x: Tensor, sizes: Sequence[ConvSize], config: Sequence[int] | None, input_precision: str) -> ConvConfig:
    """The configuration asked for, or else the one predicted to be the fastest for these sizes in the dtype and on the device of x."""
    if config is not None:
        return ConvConfig.decode(list(config))
    capability, multiprocessors = device_limits(x.device)
    return choose_config(sizes, x.dtype, input_precision, capability, multiprocessors)


def size_of(x: Tensor, shape: Sequence[int], window: Window) -> ConvSize:
    """The size of the GEMM that turns x [N, C, H, W] into `shape` [N, K, P, Q]."""
    n, k, p, q = shape
    return ConvSize(n * p * q, k, x.shape[1], window.size[0] * window.size[1])


def make_destinations(outs: Sequence[Tensor], starts: Sequence[int], channels: int, block_n: int, flat: bool) -> tuple[tuple[Destination, ...], int]:
    """The destinations as the kernels take them, and the number of channel tiles over all of them: a tile never spans two."""
    destinations = []
    tiles = 0
    for out, start, stop in zip(outs, starts, [*starts[1:], channels], strict=True):
        destinations.append(Destination(out, *pixel_strides(out, flat), start, stop, tiles))
        tiles += ceil_div(stop - start, block_n)
    return tuple(destinations), tiles


def _places(operator: str, channels: int, out: Tensor | None, splits: Sequence[Split] | None) -> tuple[list[Tensor], list[int]]:
    """Tensor and first channel of each destination: `out` as the only one, or `splits`."""
    if splits is None:
        return ([], []) if out is None else ([out], [0])
    stops = [stop for _, stop, _ in splits]
    if out is not None or not splits or [start for start, _, _ in splits] != [0, *stops[:-1]] or stops[-1] != channels:
        bounds = [(start, stop) for start, stop, _ in splits]
        raise InputError(f"{operator}: splits must take each of the {channels} output channels once and in order, without out; got {bounds}")
    return [destination for _, _, destination in splits], [start for start, _, _ in splits]


def compute(operator: Operator[Any], values: tuple[Any, ...], out: Tensor | None, splits: Sequence[Split] | None) -> Tensor | None:
    """The result of a convolution operator: `out` or a new tensor, or None with `splits`, which then hold it.

    Raises:
        InputError: `splits` do not take each output channel once and in order, or come with `out`; or what the operator refuses.
    """
    if out is None and splits is None:
        return operator(values)
    weight = values[1]
    operator.into(values, *_places(operator.name, weight.shape[0], out, splits))
    return out


def compute_ref(operator: str, convolution: Convolution, out: Tensor | None = None, splits: Sequence[Split] | None = None) -> Tensor | None:
    """What `compute` does, by PyTorch: the result is [N, K, P, Q] channels_last in the dtype of x, on any device."""
    y = convolve(operator, convolution)
    if out is None and splits is None:
        return y
    for destination, start in zip(*_places(operator, y.shape[1], out, splits), strict=True):
        destination.copy_(y[:, start : start + destination.shape[1]])
    return out


def convolve(operator: str, convolution: Convolution) -> Tensor:
    """What the kernels compute, [N, K, P, Q] channels_last, by PyTorch."""
    x, bias, window = convolution.x, convolution.bias, convolution.window(operator)
    unpacked = convolution.weight[..., : x.shape[1]].permute(0, 3, 1, 2)
    y = F.conv2d(x, unpacked, None if bias is None else bias.to(x.dtype), *window[1:])
    if convolution.residual is not None:
        y = y + convolution.residual
    if convolution.relu:
        y = F.relu(y)
    return y.contiguous(memory_format=torch.channels_last)
