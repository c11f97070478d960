"""Maximum and average pooling over windows, with bias and ReLU on the way.

    max: out[n, c, i, j] = relu(max over (a, b) of x[n, c, i·stride - padding + a·dilation, j·stride - padding + b·dilation] + bias[c])
    avg: the same with the sum over (a, b) divided by the count of the window, dilation 1

Bias and ReLU are there for an average pool that was moved behind the 1×1 projection it stood before, and so behind that convolution's epilogue. Input
and output may be channel slices of larger buffers, so a pool reads from one concat and writes into the next.

As in concat.py, memory is treated as a list of vectors of up to 16 bytes of neighbouring channels, and a program takes BLOCK_V consecutive vectors of
the output: no lane idles, whatever the number of channels. Windows that overlap are read again, from L1 mostly, for those of one program are
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.launching import ceil_div, check_activation, check_bias, launch, offsets_need_int64, vector_width
from fastcnn.kernels.operators import Operator, Result

# The same number for height and width, or one for each.
OneOrTwo = int | list[int] | tuple[int, ...]

# One vector for each thread: the nine loads of a 3×3 window do not wait for each other, which is as much in flight as a thread can hold well.
_BLOCK_V, _NUM_WARPS = 128, 4
# Windows of up to nine taps, 3×3 that is, are unrolled whole; larger ones take four taps at a time, which the compiler fits into few registers.
_WHOLE_WINDOW_TAPS, _TAPS_AT_A_TIME = 9, 4


@triton.jit(
    do_not_specialize=[
        *("vectors_per_pixel", "x_stride_n", "x_stride_c", "x_stride_h", "x_stride_w", "out_stride_n", "out_stride_h", "out_stride_w"),
        *("out_pixels", "height", "width", "out_height", "out_width"),
    ]
)
def _pool2d_kernel(
    x_ptr,  # [N, C, H, W]
    bias_ptr,  # [C] or None
    out_ptr,  # [N, C, OUT_H, OUT_W], channels next to each other
    vectors_per_pixel,  # C / VEC
    # In vectors where CHANNELS_LAST, else in elements.
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    out_stride_n, out_stride_h, out_stride_w,  # in vectors
    out_pixels,  # N · OUT_H · OUT_W
    height, width,
    out_height, out_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    IS_MAX: tl.constexpr,
    FULL_WINDOWS: tl.constexpr,  # every window of an average counts KERNEL_H · KERNEL_W
    COUNT_INCLUDE_PAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,  # the channels of x are next to each other
    INT64: tl.constexpr,
    VEC: tl.constexpr,  # channels of one vector; divides C, and every pixel starts at a multiple of it
    BLOCK_V: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if INT64:
        program = program.to(tl.int64)
        out_pixels = out_pixels.to(tl.int64)
    element = program * (BLOCK_V * VEC) + tl.arange(0, BLOCK_V * VEC)  # [BLOCK_V · VEC]
    vector = element // VEC
    is_inside = vector < out_pixels * vectors_per_pixel
    pixel = vector // vectors_per_pixel
    channel = (vector - pixel * vectors_per_pixel) * VEC + element % VEC
    row = pixel // out_width
    out_w = pixel - row * out_width
    n = row // out_height
    out_h = row - n * out_height

    # The first tap of the window; it lies in the padding where negative.
    h_start = out_h * STRIDE_H - PADDING_H
    w_start = out_w * STRIDE_W - PADDING_W
    x_offset = n * x_stride_n + h_start * x_stride_h + w_start * x_stride_w
    x_offset = x_offset * VEC + channel if CHANNELS_LAST else x_offset + channel * x_stride_c

    outside = float("-inf") if IS_MAX else 0.0
    acc = tl.full([BLOCK_V * VEC], outside, tl.float32)
    for tap in tl.range(0, KERNEL_H * KERNEL_W, loop_unroll_factor=UNROLL):
        tap_h = tap // KERNEL_W * DILATION_H
        tap_w = tap % KERNEL_W * DILATION_W
        h = h_start + tap_h
        w = w_start + tap_w
        is_valid = is_inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        step = tap_h * x_stride_h + tap_w * x_stride_w
        x = tl.load(x_ptr + x_offset + (step * VEC if CHANNELS_LAST else step), mask=is_valid, other=outside).to(tl.float32)
        acc = tl.maximum(acc, x, propagate_nan=tl.PropagateNan.ALL) if IS_MAX else acc + x

    if not IS_MAX:
        if FULL_WINDOWS:
            acc = tl.div_rn(acc, KERNEL_H * KERNEL_W * 1.0)
        else:
            # A window of ceil mode may reach beyond the padding; what lies there is never counted.
            h_end = tl.minimum(h_start + KERNEL_H, height + PADDING_H if COUNT_INCLUDE_PAD else height)
            w_end = tl.minimum(w_start + KERNEL_W, width + PADDING_W if COUNT_INCLUDE_PAD else width)
            if not COUNT_INCLUDE_PAD:
                h_start = tl.maximum(h_start, 0)
                w_start = tl.maximum(w_start, 0)
            acc = tl.div_rn(acc, ((h_end - h_start) * (w_end - w_start)).to(tl.float32))
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel, mask=is_inside, other=0.0).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0.0, 0.0, acc)  # a comparison, for it keeps NaN
    out_offset = (n * out_stride_n + out_h * out_stride_h + out_w * out_stride_w) * VEC + channel
    tl.store(out_ptr + out_offset, acc.to(out_ptr.dtype.element_ty), mask=is_inside)


def _output_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows fit. Ceil mode adds one that reaches beyond the end, provided it starts inside the input or the padding before it."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


class PoolWindow(NamedTuple):
    """The windows of a pool, as in `torch.nn.functional.max_pool2d` and `avg_pool2d`; one integer, or one for each of height and width.

    Attributes:
        stride: that of the kernel if None.
        dilation: of a maximum only.
        count_include_pad: of an average: whether the padding counts in what it divides by.
    """

    kernel_size: OneOrTwo
    stride: OneOrTwo | None = None
    padding: OneOrTwo = 0
    dilation: OneOrTwo = 1
    ceil_mode: bool = False
    count_include_pad: bool = True


class _Arguments(NamedTuple):
    reduction: str
    x: Tensor
    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool
    count_include_pad: bool
    bias: Tensor | None
    relu: bool

    @property
    def operator(self) -> str:
        """The public name."""
        return f"{self.reduction}_pool2d"


def _check(arguments: _Arguments) -> Result:
    operator, x, ceil_mode = arguments.operator, arguments.x, arguments.ceil_mode
    kernel_size, stride, padding, dilation = arguments.kernel_size, arguments.stride, arguments.padding, arguments.dilation
    check_activation(operator, "x", x)
    n, c, h, w = x.shape
    check_bias(operator, "bias", arguments.bias, c, x)
    if any(2 * padding[i] > kernel_size[i] for i in range(2)):
        raise InputError(
            f"{operator}: padding {list(padding)} must be at most half of kernel_size {list(kernel_size)}, x has the shape {list(x.shape)}"
        )
    sizes = [_output_size(size, kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i, size in enumerate((h, w))]
    if h == 0 or w == 0 or min(sizes) < 1:
        window = [dilation[i] * (kernel_size[i] - 1) + 1 for i in range(2)]
        raise InputError(f"{operator}: the window {window} with padding {list(padding)} does not fit into x of shape {list(x.shape)}")
    return Result(operator, [n, c, *sizes], x)


def _run(arguments: _Arguments, out: Tensor) -> None:
    x, bias = arguments.x, arguments.bias
    kernel_size, stride, padding, dilation = arguments.kernel_size, arguments.stride, arguments.padding, arguments.dilation
    count_include_pad = arguments.count_include_pad
    n, c, h, w = x.shape
    out_h, out_w = out.shape[2:]
    if out.numel() == 0:
        return
    channels_last = c == 1 or x.stride(1) == 1
    # A strided input is read channel by channel: only the output is asked to be aligned.
    vec = vector_width([c], (x, out) if channels_last else (out,))
    x_unit = vec if channels_last else 1
    taps = kernel_size[0] * kernel_size[1]
    # Only in ceil mode does a window reach beyond the padding.
    end = [(size - 1) * stride[i] - padding[i] + kernel_size[i] for i, size in enumerate((out_h, out_w))]
    full_windows = end[0] <= h + padding[0] and end[1] <= w + padding[1] and (count_include_pad or not any(padding))
    launch(
        arguments.operator,
        _pool2d_kernel,
        (ceil_div(out.numel() // vec, _BLOCK_V),),
        x,
        bias,
        out,
        c // vec,
        *(step // x_unit for step in x.stride()),
        *(out.stride(axis) // vec for axis in (0, 2, 3)),
        n * out_h * out_w,
        h,
        w,
        out_h,
        out_w,
        KERNEL_H=kernel_size[0],
        KERNEL_W=kernel_size[1],
        STRIDE_H=stride[0],
        STRIDE_W=stride[1],
        PADDING_H=padding[0],
        PADDING_W=padding[1],
        DILATION_H=dilation[0],
        DILATION_W=dilation[1],
        IS_MAX=arguments.reduction == "max",
        FULL_WINDOWS=full_windows,
        COUNT_INCLUDE_PAD=count_include_pad,
        HAS_BIAS=bias is not None,
        RELU=arguments.relu,
        CHANNELS_LAST=channels_last,
        INT64=offsets_need_int64(x, out),
        VEC=vec,
        BLOCK_V=_BLOCK_V,
        UNROLL=taps if taps <= _WHOLE_WINDOW_TAPS else _TAPS_AT_A_TIME,
        num_warps=_NUM_WARPS,
        device=x.device,
    )


_POOL2D = Operator(
    "pool2d",
    "str reduction, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
    "bool count_include_pad, Tensor? bias, bool relu",
    _Arguments,
    _check,
    _run,
)


def _pair(operator: str, name: str, value: OneOrTwo, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(number, int) and number >= least for number in pair):
        raise InputError(f"{operator}: {name} must be one or two integers of at least {least}, got {value}")
    return pair[0], pair[1]


def _arguments(reduction: str, x: Tensor, window: PoolWindow, bias: Tensor | None, relu: bool) -> _Arguments:
    operator = f"{reduction}_pool2d"
    return _Arguments(
        reduction,
        x,
        _pair(operator, "kernel_size", window.kernel_size, 1),
        _pair(operator, "stride", window.kernel_size if window.stride is None else window.stride, 1),
        _pair(operator, "padding", window.padding, 0),
        _pair(operator, "dilation", window.dilation, 1),
        window.ceil_mode,
        reduction == "avg" and window.count_include_pad,
        bias,
        relu,
    )


def max_pool2d(x: Tensor, window: PoolWindow, bias: Tensor | None = None, relu: bool = False, out: Tensor | None = None) -> Tensor:
    """The maximum of each window, then bias and ReLU where asked for, in one launch. NaN in a window gives NaN; padding is minus infinity.

    Args:
        x: [N, C, H, W] in float16, bfloat16 or float32. Any strides; fast for channels_last and channel slices of it.
        window: which pixels a maximum is taken of.
        bias: [C] in float32 or in the dtype of x.
        relu: whether ReLU follows.
        out: where to write, [N, C, OUT_H, OUT_W]: channels_last or a channel slice of a larger channels_last buffer. Must not
            overlap x.

    Returns:
        `out`, or a new channels_last tensor, [N, C, OUT_H, OUT_W] in the dtype of x.

    Raises:
        InputError (a ValueError): shapes, dtypes or devices do not fit together, or no window fits into x.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    return _POOL2D(_arguments("max", x, window, bias, relu), out)


def max_pool2d_ref(x: Tensor, window: PoolWindow, bias: Tensor | None = None, relu: bool = False, out: Tensor | None = None) -> Tensor:
    """What `max_pool2d` computes, in PyTorch."""
    geometry = (window.kernel_size, window.stride, window.padding, window.dilation, window.ceil_mode)
    return _finish(F.max_pool2d(x.float(), *geometry), x, bias, relu, out)


def avg_pool2d(x: Tensor, window: PoolWindow, bias: Tensor | None = None, relu: bool = False, out: Tensor | None = None) -> Tensor:
    """The average of each window, summed in float32, then bias and ReLU where asked for, in one launch; rounded once.

    Args and what is returned as for `max_pool2d`.

    Raises:
        InputError (a ValueError): as `max_pool2d`, or the window is dilated.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    _refuse_dilation(window)
    return _POOL2D(_arguments("avg", x, window, bias, relu), out)


def avg_pool2d_ref(x: Tensor, window: PoolWindow, bias: Tensor | None = None, relu: bool = False, out: Tensor | None = None) -> Tensor:
    """What `avg_pool2d` computes, in PyTorch."""
    _refuse_dilation(window)
    geometry = (window.kernel_size, window.stride, window.padding, window.ceil_mode, window.count_include_pad)
    return _finish(F.avg_pool2d(x.float(), *geometry), x, bias, relu, out)


def _refuse_dilation(window: PoolWindow) -> None:
    if window.dilation not in (1, (1, 1), [1, 1]):
        raise InputError(f"avg_pool2d: an average has no dilation, got {window.dilation}; leave it out, or pool with PyTorch")


def _finish(y: Tensor, x: Tensor, bias: Tensor | None, relu: bool, out: Tensor | None) -> Tensor:
    """Epilogue of the references: y [N, C, OUT_H, OUT_W] in float32."""
    if bias is not None:
        y = y + bias.float().view(1, -1, 1, 1)
    if relu:
        y = torch.relu(y)
    result = y.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return result if out is None else out.copy_(result)
