"""The first convolution of a network, 3 channels in: normalisation + convolution + bias + ReLU, straight from the pixels.

    x̂[n, c, h, w] = x[n, c, h, w] · scale[c] + shift[c] inside the image, 0 outside
    y[n, k, p, q] = relu(bias[k] + Σ_{r, s, c} weight[k, c, r, s] · x̂[n, c, p·stride − padding + r, q·stride − padding + s])

The implicit GEMM of convolution.py takes one tap a step: with 3 channels, 13 of the 16 products of a step would be zeros. Here taps and channels are
one axis of R·S·C (27 for 3×3, 147 for 7×7), padded to a power of two, or cut into steps of 32 where it is longer. Each element is gathered on
its own, which costs loads but no memory traffic: neighbouring windows overlap in L1, and writing the result takes longer.

The input may be float or the uint8 pixels themselves, NHWC or NCHW. Normalising while gathering is exact also for padded convolutions, where folding
scale and shift into weight and bias is not: the padding is 0 after the normalisation, as it is when the framework pads a normalised picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_kernels import finish_tile, round_operand
from fastcnn.kernels.convolution_problem import Pair, Window, check_input_precision, make_pair, make_window
from fastcnn.kernels.launching import (
    ACTIVATION_DTYPES,
    ceil_div,
    check_bias,
    check_vector,
    has_flat_pixels,
    launch,
    needs_upcast,
    passes_int32,
    pixel_strides,
)
from fastcnn.kernels.operators import Operator, Result

MAX_CHANNELS = 4
INPUT_DTYPES = (torch.uint8, *ACTIVATION_DTYPES)

_OPERATOR = "stem_conv2d"

# Every element of a step lies in registers while it is gathered, so steps are no longer than 32 and tiles have 64 pixels; a window that fits one step
# leaves room for 128 in half precision. The result of a first layer is large: there are always enough tiles.
_BLOCK_M, _BLOCK_M_ONE_STEP = 64, 128
_LONGEST_STEP = 32
_WIDEST_BLOCK_N = 64
_LEAST_BLOCK = 16
_NUM_WARPS = 4


@triton.jit(do_not_specialize=["pixels"])
def _stem_conv2d_kernel(
    pixels,  # N·P·Q
    x_ptr,  # [N, C, H, W] in any memory format; uint8 or float
    w_ptr,  # [K, R, S, C], rows of K padded with zeros to w_stride_k
    bias_ptr,  # [K], or None
    scale_ptr,  # [C] float32, or None
    shift_ptr,  # [C] float32, or None
    out_ptr,  # [N, P, Q, K], channels contiguous
    height,
    width,
    out_height,
    out_width,
    out_channels,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    w_stride_k,
    out_stride_n, out_stride_h, out_stride_w,
    tiles_n,
    C: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    FLAT: tl.constexpr,
    RELU: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile_m = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Pixels and channels past the end repeat the last one: they are computed and not stored.
    pixel = tl.minimum(rows, pixels - 1)
    channel = tl.minimum(cols, out_channels - 1)
    top = pixel // out_width % out_height * STRIDE_H - PAD_H
    left = pixel % out_width * STRIDE_W - PAD_W
    n = pixel // (out_width * out_height)
    corner = n.to(tl.int64) * x_stride_n + top.to(tl.int64) * x_stride_h + left.to(tl.int64) * x_stride_w
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.range(0, R * S * C, BLOCK_K, num_stages=1):
        depth = start + tl.arange(0, BLOCK_K)  # index over R, S, C
        c = depth % C
        s = depth // C % S
        r = depth // (C * S)
        h = top[:, None] + r[None, :]
        w_col = left[:, None] + s[None, :]
        inside = (h >= 0) & (h < height) & (w_col >= 0) & (w_col < width) & (depth < R * S * C)[None, :]
        offsets = corner[:, None] + (r.to(tl.int64) * x_stride_h + s.to(tl.int64) * x_stride_w + c.to(tl.int64) * x_stride_c)[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0)
        if scale_ptr is not None:
            x = x.to(tl.float32) * tl.load(scale_ptr + c)[None, :] + tl.load(shift_ptr + c)[None, :]
            x = tl.where(inside, x, 0.0)
        x = round_operand(x.to(w_ptr.dtype.element_ty), INPUT_PRECISION)
        w = tl.load(w_ptr + channel[None, :] * w_stride_k + depth[:, None], mask=(depth < R * S * C)[:, None], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=INPUT_PRECISION)
    finish_tile(
        acc, rows, cols, bias_ptr, out_channels, out_ptr, out_stride_n, out_stride_h, out_stride_w, 0, out_channels,
        pixels, out_height, out_width, RELU, FLAT, INPUT_PRECISION,
    )  # fmt: skip


def pack_stem_weight(weight: Tensor) -> Tensor:
    """The weight [K, C, R, S] as `stem_conv2d` reads it: [K, R, S, C], each row of R·S·C padded with zeros to a multiple of 16 elements in memory."""
    if weight.dim() != 4 or weight.numel() == 0:
        raise InputError(f"pack_stem_weight: weight must have the shape [K, C, R, S] without a zero, got {list(weight.shape)}")
    k, c, r, s = weight.shape
    rows = weight.new_zeros(k, -(-r * s * c // _LEAST_BLOCK) * _LEAST_BLOCK)
    packed = rows[:, : r * s * c].unflatten(1, (r, s, c))
    return packed.copy_(weight.permute(0, 2, 3, 1))


class StemConvolution(NamedTuple):
    """The first convolution of a network: relu(bias + weight * (x·scale + shift)).

    Attributes:
        x: [N, C, H, W], C 1 to 4, uint8, float16, bfloat16 or float32, in any memory format: for pixels [N, H, W, C],
            `pixels.permute(0, 3, 1, 2)`.
        weight: [K, R, S, C] from `pack_stem_weight`; its dtype is that of the products and of the result.
        bias: [K], float32 or the dtype of the weight.
        stride, padding: one number, or (vertical, horizontal).
        scale, shift: [C] float32, both or neither: x·scale + shift is what is convolved and padded with zeros.
        relu: whether to clamp at 0; NaN stays NaN.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Pair = 1
    padding: Pair = 0
    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = True

    def window(self) -> Window:
        """The kernel size that the weight has, with stride and padding.

        Raises:
            InputError: the weight is not packed, or a number is out of range.
        """
        return make_window(_OPERATOR, self.weight, self.stride, self.padding, 1)


class _Arguments(NamedTuple):
    stem: StemConvolution
    input_precision: str


def _check(arguments: _Arguments) -> Result:
    stem, input_precision = arguments
    x, weight, scale, shift, window = stem.x, stem.weight, stem.scale, stem.shift, stem.window()
    check_input_precision(_OPERATOR, input_precision)
    if x.dim() != 4 or not 1 <= x.shape[1] <= MAX_CHANNELS:
        raise InputError(f"{_OPERATOR}: x must have the shape [N, C, H, W] with 1 to {MAX_CHANNELS} channels, got {list(x.shape)}")
    if x.dtype not in INPUT_DTYPES:
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} has dtype {x.dtype}; supported are {', '.join(map(str, INPUT_DTYPES))}")
    c = x.shape[1]
    if weight.shape[3] != c or weight.stride()[1:] != (window.size[1] * c, c, 1):
        raise InputError(
            f"{_OPERATOR}: weight must come from pack_stem_weight, [K, R, S, {c}], got {list(weight.shape)} with strides {weight.stride()}"
        )
    if weight.dtype not in ACTIVATION_DTYPES or weight.device != x.device:
        raise InputError(f"{_OPERATOR}: weight is {weight.dtype} on {weight.device}, expected float16, bfloat16 or float32 on {x.device}")
    check_bias(_OPERATOR, "bias", stem.bias, weight.shape[0], weight)
    if (scale is None) != (shift is None):
        raise InputError(f"{_OPERATOR}: scale and shift come together, one of them is None")
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector is not None:
            check_vector(_OPERATOR, name, vector, x)
    shape = window.out_shape(_OPERATOR, x, weight)
    if passes_int32(shape[0] * shape[2] * shape[3] + _BLOCK_M_ONE_STEP):
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} is too large: N·P·Q must be less than 2^31")
    return Result(_OPERATOR, shape, weight)


def _run(arguments: _Arguments, out: Tensor) -> None:
    stem, input_precision = arguments
    x, weight, window = stem.x, stem.weight, stem.window()
    n, k, p, q = out.shape
    depth = window.size[0] * window.size[1] * x.shape[1]
    block_m = _BLOCK_M_ONE_STEP if weight.dtype.itemsize == 2 and depth <= _LONGEST_STEP else _BLOCK_M
    block_n = min(_WIDEST_BLOCK_N, max(_LEAST_BLOCK, triton.next_power_of_2(k)))
    flat = has_flat_pixels(out)
    constants = window.constants()
    del constants["DILATION_H"], constants["DILATION_W"]
    tiles_n = ceil_div(k, block_n)
    launch(
        _OPERATOR,
        _stem_conv2d_kernel,
        (ceil_div(n * p * q, block_m) * tiles_n,),
        n * p * q,
        x,
        weight,
        stem.bias,
        stem.scale,
        stem.shift,
        out,
        *x.shape[2:],
        p,
        q,
        k,
        *x.stride(),
        weight.stride(0),
        *pixel_strides(out, flat),
        tiles_n,
        device=x.device,
        **constants,
        C=x.shape[1],
        FLAT=flat,
        RELU=stem.relu,
        INPUT_PRECISION=input_precision,
        UPCAST=needs_upcast(_stem_conv2d_kernel, weight),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=min(_LONGEST_STEP, max(_LEAST_BLOCK, triton.next_power_of_2(depth))),
        num_warps=_NUM_WARPS,
    )


_STEM_CONV2D = Operator(
    _OPERATOR,
    "Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, Tensor? scale, Tensor? shift, bool relu, {out}, str input_precision",
    lambda *values: _Arguments(StemConvolution(*values[:8]), values[8]),
    _check,
    _run,
)


def stem_conv2d(stem: StemConvolution, out: Tensor | None = None, input_precision: str = "ieee") -> Tensor:
    """Normalisation, convolution of few input channels, bias and ReLU in one launch.

    Args:
        stem: what to compute.
        out: [N, K, P, Q] to write into, channels_last or a channel slice of it; allocated channels_last if None.
        input_precision: "ieee" or "tf32", for float32 weights.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    geometry = list(make_pair(stem.stride)), list(make_pair(stem.padding))
    values = (stem.x, stem.weight, stem.bias, *geometry, stem.scale, stem.shift, stem.relu, input_precision)
    return _STEM_CONV2D(values, out)


def stem_conv2d_ref(stem: StemConvolution, out: Tensor | None = None, input_precision: str = "ieee") -> Tensor:
    """`stem_conv2d` in PyTorch's own operations: normalises in float32 (float64 for a float64 weight), convolves in the weight's dtype."""
    x, weight, scale, shift = stem.x, stem.weight, stem.scale, stem.shift
    if scale is not None and shift is not None:
        wide = torch.promote_types(torch.float32, weight.dtype)
        x = x.to(wide) * scale.to(wide).view(-1, 1, 1) + shift.to(wide).view(-1, 1, 1)
    bias = None if stem.bias is None else stem.bias.to(weight.dtype)
    y = F.conv2d(x.to(weight.dtype), weight.permute(0, 3, 1, 2), bias, stem.stride, stem.padding)
    if stem.relu:
        y = F.relu(y)
    return y.contiguous(memory_format=torch.channels_last) if out is None else out.copy_(y)
