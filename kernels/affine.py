"""Scale, shift and ReLU by channel: a BatchNorm in front of its convolution (DenseNet, pre-activation ResNet), which cannot be folded into it.

    out[n, c, h, w] = relu(x[n, c, h, w] · scale[c] + shift[c])

Computed in float32 and rounded once. A program takes BLOCK_P neighbouring pixels and BLOCK_C of their channels; input and output may be channel
slices, so a dense block's prefix is read where it lies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_kernels import pixel_offsets
from fastcnn.kernels.launching import (
    ceil_div,
    check_activation,
    check_channels_last,
    check_vector,
    has_flat_pixels,
    launch,
    passes_int32,
    pixel_strides,
)
from fastcnn.kernels.operators import Operator, Result

# 64 channels are a line of 128 bytes in fp16; 4 warps then hold 16 elements a thread, two vectors of 16 bytes.
_BLOCK_P, _BLOCK_C, _NUM_WARPS = 32, 64, 4
_OPERATOR = "scale_bias_relu"


@triton.jit(do_not_specialize=["pixels"])
def _scale_bias_relu_kernel(
    pixels,  # N·H·W
    x_ptr,  # [N, H, W, C], channels contiguous
    scale_ptr,  # [C], float32
    shift_ptr,  # [C], float32
    out_ptr,  # [N, H, W, C], channels contiguous
    channels,
    height,
    width,
    x_stride_n, x_stride_h, x_stride_w,
    out_stride_n, out_stride_h, out_stride_w,
    blocks_c,  # blocks of BLOCK_C channels
    FLAT: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) // blocks_c * BLOCK_P + tl.arange(0, BLOCK_P)
    cols = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < pixels)[:, None] & (cols < channels)[None, :]
    x_offsets = pixel_offsets(rows, height, width, x_stride_n, x_stride_h, x_stride_w, FLAT)
    x = tl.load(x_ptr + x_offsets[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + cols, mask=cols < channels, other=0.0)
    shift = tl.load(shift_ptr + cols, mask=cols < channels, other=0.0)
    y = x * scale[None, :] + shift[None, :]
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    out_offsets = pixel_offsets(rows, height, width, out_stride_n, out_stride_h, out_stride_w, FLAT)
    tl.store(out_ptr + out_offsets[:, None] + cols[None, :], y.to(out_ptr.dtype.element_ty), mask=mask)


class _Arguments(NamedTuple):
    x: Tensor
    scale: Tensor
    shift: Tensor
    relu: bool


def _check(arguments: _Arguments) -> Result:
    x = arguments.x
    check_activation(_OPERATOR, "x", x)
    check_channels_last(_OPERATOR, x)
    check_vector(_OPERATOR, "scale", arguments.scale, x)
    check_vector(_OPERATOR, "shift", arguments.shift, x)
    if passes_int32(x.shape[0] * x.shape[2] * x.shape[3] + _BLOCK_P):
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} is too large: N·H·W must be less than 2^31")
    return Result(_OPERATOR, list(x.shape), x)


def _run(arguments: _Arguments, out: Tensor) -> None:
    x = arguments.x
    n, c, h, w = x.shape
    flat = has_flat_pixels(x) and has_flat_pixels(out)
    blocks_c = ceil_div(c, _BLOCK_C)
    launch(
        _OPERATOR,
        _scale_bias_relu_kernel,
        (ceil_div(n * h * w, _BLOCK_P) * blocks_c,),
        n * h * w,
        x,
        arguments.scale,
        arguments.shift,
        out,
        c,
        h,
        w,
        *pixel_strides(x, flat),
        *pixel_strides(out, flat),
        blocks_c,
        device=x.device,
        FLAT=flat,
        RELU=arguments.relu,
        BLOCK_P=_BLOCK_P,
        BLOCK_C=_BLOCK_C,
        num_warps=_NUM_WARPS,
    )


_SCALE_BIAS_RELU = Operator(_OPERATOR, "Tensor x, Tensor scale, Tensor shift, bool relu", _Arguments, _check, _run)


def scale_bias_relu(x: Tensor, scale: Tensor, shift: Tensor, relu: bool = True, out: Tensor | None = None) -> Tensor:
    """Scale, shift and ReLU by channel in one launch.

    Args:
        x: [N, C, H, W] in float16, bfloat16 or float32, channels_last or a channel slice of it.
        scale, shift: [C], float32.
        relu: whether to clamp at 0; NaN stays NaN.
        out: [N, C, H, W] to write into, channels_last or a channel slice of it; may be x itself.

    Returns:
        `out`, or a new channels_last tensor in the dtype of x.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    return _SCALE_BIAS_RELU(_Arguments(x, scale, shift, relu), out)


def scale_bias_relu_ref(x: Tensor, scale: Tensor, shift: Tensor, relu: bool = True, out: Tensor | None = None) -> Tensor:
    """What `scale_bias_relu` computes, in PyTorch."""
    y = x.float() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    result = (torch.relu(y) if relu else y).to(x.dtype).contiguous(memory_format=torch.channels_last)
    return result if out is None else out.copy_(result)
