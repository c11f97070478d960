"""Scale, shift and ReLU by channel: a BatchNorm in front of its convolution (DenseNet, pre-activation ResNet), which cannot be folded into it.

    out[n, c, h, w] = relu(x[n, c, h, w] · scale[c] + shift[c])

Computed in float32 and rounded once. A program takes BLOCK_P neighbouring pixels and BLOCK_C of their channels; input and output may be channel
slices, so a dense block's prefix is read where it lies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_kernels import pixel_offsets
from fastcnn.kernels.launching import check_activation, check_output, has_flat_pixels, launch, pixel_strides

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


def _check(x: Tensor, scale: Tensor, shift: Tensor) -> None:
    check_activation(_OPERATOR, "x", x)
    if x.shape[1] == 0 or (x.stride(1) != 1 and x.shape[1] > 1):
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} must be channels_last or a channel slice of it, its strides are {x.stride()}")
    for name, vector in (("scale", scale), ("shift", shift)):
        if list(vector.shape) != [x.shape[1]] or vector.dtype != torch.float32 or vector.device != x.device or not vector.is_contiguous():
            raise InputError(
                f"{_OPERATOR}: {name} must be contiguous, [{x.shape[1]}] and float32 on {x.device}, "
                f"got {list(vector.shape)} {vector.dtype} on {vector.device}"
            )
    if x.shape[0] * x.shape[2] * x.shape[3] + _BLOCK_P >= 2**31:
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} is too large: N·H·W must be less than 2^31")


def _launch(x: Tensor, scale: Tensor, shift: Tensor, relu: bool, out: Tensor) -> None:
    n, c, h, w = x.shape
    flat = has_flat_pixels(x) and has_flat_pixels(out)
    blocks_c = triton.cdiv(c, _BLOCK_C)
    launch(
        _OPERATOR,
        _scale_bias_relu_kernel,
        (triton.cdiv(n * h * w, _BLOCK_P) * blocks_c,),
        n * h * w,
        x,
        scale,
        shift,
        out,
        c,
        h,
        w,
        *pixel_strides(x, flat),
        *pixel_strides(out, flat),
        blocks_c,
        device=x.device,
        FLAT=flat,
        RELU=relu,
        BLOCK_P=_BLOCK_P,
        BLOCK_C=_BLOCK_C,
        num_warps=_NUM_WARPS,
    )


@torch.library.custom_op("fastcnn::scale_bias_relu", mutates_args=(), schema="(Tensor x, Tensor scale, Tensor shift, bool relu) -> Tensor")
def _scale_bias_relu(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    out = _scale_bias_relu_fake(x, scale, shift, relu)
    _launch(x, scale, shift, relu, out)
    return out


@_scale_bias_relu.register_fake
def _scale_bias_relu_fake(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    _check(x, scale, shift)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op(
    "fastcnn::scale_bias_relu_out", mutates_args=("out",), schema="(Tensor x, Tensor scale, Tensor shift, bool relu, Tensor(a!) out) -> ()"
)
def _scale_bias_relu_out(x: Tensor, scale: Tensor, shift: Tensor, relu: bool, out: Tensor) -> None:
    _scale_bias_relu_out_fake(x, scale, shift, relu, out)
    _launch(x, scale, shift, relu, out)


@_scale_bias_relu_out.register_fake
def _scale_bias_relu_out_fake(x: Tensor, scale: Tensor, shift: Tensor, relu: bool, out: Tensor) -> None:
    _check(x, scale, shift)
    check_output(_OPERATOR, out, x.shape, x)


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
    if out is None:
        return torch.ops.fastcnn.scale_bias_relu(x, scale, shift, relu)
    torch.ops.fastcnn.scale_bias_relu_out(x, scale, shift, relu, out)
    return out


def scale_bias_relu_ref(x: Tensor, scale: Tensor, shift: Tensor, relu: bool = True, out: Tensor | None = None) -> Tensor:
    """What `scale_bias_relu` computes, in PyTorch."""
    y = x.float() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    result = (torch.relu(y) if relu else y).to(x.dtype).contiguous(memory_format=torch.channels_last)
    return result if out is None else out.copy_(result)
