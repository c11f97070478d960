"""Convolution + bias + residual + ReLU on NHWC activations as an implicit GEMM: the general case, any kernel size, stride, padding and dilation.

    y[n, k, p, q] = relu(bias[k] + residual[n, k, p, q] + Σ_{r, s, c} weight[k, c, r, s] · x[n, c, h, w]),
    h = p·stride − padding + r·dilation, w = q·stride − padding + s·dilation

A GEMM of N·P·Q pixels by K output channels over R·S·C, whose left operand is gathered from x while it runs: each step of the reduction is one tap
(r, s) and BLOCK_K input channels, and pixels that fall into the padding load zeros. Sums and epilogue are float32, rounded once when stored.
Lineage: the implicit GEMM of cuDNN (Chetlur et al., 2014, https://arxiv.org/abs/1410.0759).

The weight is packed once (`pack_weight`) to [K, R, S, C], channels padded with zeros to a multiple of 16: both operands then have the reduction
contiguous, the only order in which wgmma takes 32-bit and 8-bit operands, and rows start on 16-byte boundaries whatever C is.

With `split_k` > 1 the reduction is cut into parts that write float32 partial sums, and a second kernel adds them in order and does the epilogue:
the same bits on every run, which atomics would not give.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.runtime import JITFunction

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_configs import ConvConfig, ConvSize, choose_config
from fastcnn.kernels.convolution_kernels import Destination, Problem, conv2d_kernel, sum_parts_kernel
from fastcnn.kernels.launching import check_activation, check_bias, check_output, has_flat_pixels, launch, pixel_stride

CHANNEL_MULTIPLE = 16
MAX_DESTINATIONS = 4
INPUT_PRECISIONS = ("ieee", "tf32")

_OPERATOR = "conv2d_bias_relu"
# The sum of the parts only moves memory: enough programs for every multiprocessor matter more than wide ones.
_SUM_BLOCK_M, _SUM_BLOCK_N = 16, 64
_INT32_LIMIT = 2**31

Pair = int | Sequence[int]
Split = tuple[int, int, Tensor]


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


def check_problem(operator: str, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, residual: Tensor | None) -> list[int]:
    """Refuses what the kernels cannot read, and gives the shape [N, K, P, Q] of the result.

    Raises:
        InputError: names the tensor and its shape.
    """
    check_activation(operator, "x", x)
    n, c, h, w = x.shape
    if c == 0 or (x.stride(1) != 1 and c > 1):
        raise InputError(f"{operator}: x of shape {list(x.shape)} must be channels_last or a channel slice of it, its strides are {x.stride()}")
    padded = -(-c // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    if weight.shape[3] != padded or not weight.is_contiguous():
        raise InputError(
            f"{operator}: weight must come from pack_weight, [K, R, S, {padded}] and contiguous for x of shape {list(x.shape)}, "
            f"got {list(weight.shape)}"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise InputError(f"{operator}: weight is {weight.dtype} on {weight.device}, expected {x.dtype} on {x.device}")
    check_bias(operator, "bias", bias, weight.shape[0], x)
    shape = [n, weight.shape[0], *window.out_size(h, w)]
    if min(shape[2:]) < 1:
        raise InputError(f"{operator}: x of shape {list(x.shape)} is smaller than the window {window}")
    image = c + (h - 1) * abs(x.stride(2)) + (w - 1) * abs(x.stride(3))
    if max(image, weight.numel(), n * shape[2] * shape[3] + 1024) >= _INT32_LIMIT:
        raise InputError(f"{operator}: x of shape {list(x.shape)} is too large: one image, the weight and N·P·Q must each count fewer than 2^31")
    if residual is not None:
        check_activation(operator, "residual", residual, like=x)
        if list(residual.shape) != shape or (residual.stride(1) != 1 and shape[1] > 1):
            raise InputError(
                f"{operator}: residual must have the shape {shape} and be channels_last or a channel slice of it, "
                f"got {list(residual.shape)} with strides {residual.stride()}"
            )
    return shape


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


def pixel_strides(t: Tensor, flat: bool) -> tuple[int, int, int]:
    """Strides of t [N, C, H, W] over n, h and w; with `flat` the last is that from one pixel to the next, and the only one the kernels use."""
    return (t.stride(0), t.stride(2), pixel_stride(t) if flat else t.stride(3))


@functools.lru_cache
def device_limits(device: torch.device) -> tuple[int, int]:
    """Compute capability (10·major + minor) and number of multiprocessors; those of an H100 for a CPU, which only interprets."""
    if device.type != "cuda":
        return 90, 132
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def pick_config(operator: str, x: Tensor, sizes: Sequence[ConvSize], config: Sequence[int] | None, input_precision: str) -> ConvConfig:
    """The configuration asked for, or else the one predicted to be the fastest for problems of these sizes in the dtype and on the device of x.

    Raises:
        InputError: no such input precision.
    """
    check_input_precision(operator, input_precision)
    if config is not None:
        return ConvConfig.decode(list(config))
    capability, multiprocessors = device_limits(x.device)
    return choose_config(sizes, x.dtype, input_precision, capability, multiprocessors)


def size_of(x: Tensor, shape: Sequence[int], window: Window) -> ConvSize:
    """The size of the GEMM that turns x [N, C, H, W] into `shape` [N, K, P, Q]."""
    n, k, p, q = shape
    return ConvSize(n * p * q, k, x.shape[1], window.size[0] * window.size[1])


def needs_upcast(kernel: object, x: Tensor) -> bool:
    """Whether `kernel` must multiply x in float32: Triton's interpreter multiplies the bits of bfloat16 as integers."""
    return x.dtype == torch.bfloat16 and not isinstance(kernel, JITFunction)


def make_destinations(outs: Sequence[Tensor], starts: Sequence[int], channels: int, block_n: int, flat: bool) -> tuple[tuple[Destination, ...], int]:
    """The destinations as the kernels take them, and the number of channel tiles over all of them: a tile never spans two."""
    destinations = []
    tiles = 0
    for out, start, stop in zip(outs, starts, [*starts[1:], channels], strict=True):
        destinations.append(Destination(out, *pixel_strides(out, flat), start, stop, tiles))
        tiles += triton.cdiv(stop - start, block_n)
    return tuple(destinations), tiles


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    residual: Tensor | None,
    relu: bool,
    outs: Sequence[Tensor],
    starts: Sequence[int],
    split_k: int,
    encoded_config: Sequence[int] | None,
    input_precision: str,
) -> None:
    """Checks and launches."""
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    check_destinations(_OPERATOR, outs, starts, shape, x)
    size = size_of(x, shape, window)
    config = pick_config(_OPERATOR, x, [size], encoded_config, input_precision)
    (_, k, p, q), (_, c, h, w) = shape, x.shape
    steps = config.steps(size)
    if not 1 <= split_k <= steps:
        raise InputError(f"{_OPERATOR}: split_k must be 1 to {steps}, the steps of the reduction of weight {list(weight.shape)}, got {split_k}")
    flat = all(has_flat_pixels(t) for t in (*outs, *([] if residual is None else [residual])))
    pointwise = window.keeps_pixels() and has_flat_pixels(x)
    pixels = size.pixels
    residual_strides = (0, 0, 0) if residual is None else pixel_strides(residual, flat)
    problem = Problem(
        x, weight, bias, residual, h, w, c, p, q, k, *pixel_strides(x, pointwise), weight.stride(0), weight.stride(2), *residual_strides
    )
    constants = {
        **window.constants(),
        "CHANNEL_STEPS": triton.cdiv(c, config.block_k),
        "SPLIT_K": split_k,
        "POINTWISE": pointwise,
        "EVEN_C": c % config.block_k == 0,
        "INPUT_PRECISION": input_precision,
        "UPCAST": needs_upcast(conv2d_kernel, x),
        "CHANNELS_OUTER": config.channels_outer,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    tiles_m = triton.cdiv(pixels, config.block_m)
    if split_k == 1:
        destinations, tiles_n = make_destinations(outs, starts, k, config.block_n, flat)
        constants |= {"NUM_DESTINATIONS": len(outs), "FLAT": flat, "RELU": relu}
        launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, 1), pixels, problem, destinations, tiles_n, device=x.device, **constants)
        return
    workspace = torch.empty(split_k, pixels, k, dtype=torch.float32, device=x.device)
    tiles_n = triton.cdiv(k, config.block_n)
    partial = problem._replace(bias_ptr=None, residual_ptr=None)
    into_workspace = (Destination(workspace, 0, 0, k, 0, k, 0),)
    constants |= {"NUM_DESTINATIONS": 1, "FLAT": True, "RELU": False}
    launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, split_k), pixels, partial, into_workspace, tiles_n, device=x.device, **constants)
    destinations, tiles_n = make_destinations(outs, starts, k, _SUM_BLOCK_N, flat)
    launch(
        f"{_OPERATOR}_sum_parts",
        sum_parts_kernel,
        (triton.cdiv(pixels, _SUM_BLOCK_M) * tiles_n,),
        pixels,
        problem,
        destinations,
        workspace,
        split_k,
        tiles_n,
        device=x.device,
        NUM_DESTINATIONS=len(outs),
        FLAT=flat,
        RELU=relu,
        BLOCK_M=_SUM_BLOCK_M,
        BLOCK_N=_SUM_BLOCK_N,
        num_warps=4,
    )


@torch.library.custom_op("fastcnn::conv2d_bias_relu", mutates_args=())
def _conv2d_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _run(x, weight, bias, window, residual, relu, [out], [0], split_k, config, input_precision)
    return out


@_conv2d_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    p, q = make_window(_OPERATOR, weight, stride, padding, dilation).out_size(x.shape[2], x.shape[3])
    return torch.empty((x.shape[0], weight.shape[0], p, q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("fastcnn::conv2d_bias_relu_out", mutates_args=("outs",))
def _conv2d_out_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    outs: Sequence[Tensor],
    starts: Sequence[int],
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> None:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    _run(x, weight, bias, window, residual, relu, outs, starts, split_k, config, input_precision)


@_conv2d_out_op.register_fake
def _(*arguments: object) -> None:
    return None


def conv2d_bias_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    split_k: int = 1,
    config: ConvConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """Convolution, bias, residual add and ReLU in one launch (two with `split_k`).

    Args:
        x: [N, C, H, W], float16, bfloat16 or float32, channels_last or a channel slice of it.
        weight: [K, R, S, C_padded] from `pack_weight`, of the dtype of x.
        bias: [K], float32 or the dtype of x.
        stride, padding, dilation: one number, or (vertical, horizontal).
        residual: [N, K, P, Q], added before the ReLU; channels_last or a slice of it.
        relu: whether to clamp at 0; NaN stays NaN.
        out: [N, K, P, Q] to write into, channels_last or a slice of it; allocated channels_last if neither it nor `splits` is given.
        splits: up to four (start, stop, destination [N, stop − start, P, Q]) that take all output channels in order: merged siblings, scattered.
        split_k: parts to cut the reduction into where the pixels and channels alone do not fill the GPU (`choose_split_k`).
        config: how to cut the problem; predicted if None.
        input_precision: for float32, "ieee" multiplies in float32 and "tf32" on the tensor cores with inputs rounded to 10 bits.

    Returns:
        The result, or None with `splits`.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    encoded = None if config is None else config.encode()
    geometry = (list(window.stride), list(window.padding), list(window.dilation))
    if out is None and splits is None:
        return _conv2d_op(x, weight, bias, *geometry, residual, relu, split_k, encoded, input_precision)
    starts, outs = _destinations_of(weight.shape[0], out, splits)
    _conv2d_out_op(x, weight, bias, *geometry, residual, relu, outs, starts, split_k, encoded, input_precision)
    return out


def conv2d_bias_relu_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    split_k: int = 1,
    config: ConvConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """`conv2d_bias_relu` in PyTorch's own operations, in the dtype of x, on any device; split_k, config and input_precision say nothing to it."""
    y = convolve(x, weight, bias, make_window(_OPERATOR, weight, stride, padding, dilation), residual, relu)
    if out is None and splits is None:
        return y
    starts, outs = _destinations_of(weight.shape[0], out, splits)
    for start, destination in zip(starts, outs, strict=True):
        destination.copy_(y[:, start : start + destination.shape[1]])
    return out


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, residual: Tensor | None, relu: bool) -> Tensor:
    """What the kernels compute, [N, K, P, Q] channels_last, by PyTorch; `weight` is packed."""
    unpacked = weight[..., : x.shape[1]].permute(0, 3, 1, 2)
    y = F.conv2d(x, unpacked, None if bias is None else bias.to(x.dtype), window.stride, window.padding, window.dilation)
    if residual is not None:
        y = y + residual
    if relu:
        y = F.relu(y)
    return y.contiguous(memory_format=torch.channels_last)


def _destinations_of(channels: int, out: Tensor | None, splits: Sequence[Split] | None) -> tuple[list[int], list[Tensor]]:
    """First channel and tensor of each destination: `out` as the only one, or `splits`."""
    if splits is None:
        return ([0], [out]) if out is not None else ([], [])
    stops = [stop for _, stop, _ in splits]
    if out is not None or not splits or [start for start, _, _ in splits] != [0, *stops[:-1]] or stops[-1] != channels:
        bounds = [(start, stop) for start, stop, _ in splits]
        raise InputError(f"{_OPERATOR}: splits must take each of the {channels} output channels once and in order, without out; got {bounds}")
    return [start for start, _, _ in splits], [destination for _, _, destination in splits]
