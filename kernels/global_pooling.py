"""Global average pooling: what stands between the last convolution and the classifier.

    out[n, c] = (sum over h, w of x[n, c, h, w]) / (H · W),    summed in float32

A program owns BLOCK_C channels of one image and walks over its pixels BLOCK_P at a time, so the sum needs neither atomics nor a second pass and comes
out the same at every run. Sums of BLOCK_P lanes are added as a tree.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.launching import ceil_div, check_activation, launch, offsets_need_int64
from fastcnn.kernels.operators import ONE_TENSOR, Operator, Result

# 64 channels are one line of 128 bytes in fp16 for each pixel; the last feature maps (7×7, 8×8) take two steps. At batch 1 with 2048 channels that
# makes 32 programs: too few to fill a GPU, but one of few microseconds.
_BLOCK_P, _BLOCK_C, _NUM_WARPS = 32, 64, 4
_OPERATOR = "global_avg_pool2d"


@triton.jit
def _global_avg_pool2d_kernel(
    x_ptr,  # [N, C, H, W]
    out_ptr,  # [N, C]
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    out_stride_n, out_stride_c,
    channels,
    width,
    PIXELS: tl.constexpr,  # H · W; a network has one or two sizes here, and a known count unrolls
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    n = program // blocks
    channel = (program - n * blocks) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    if INT64:
        n = n.to(tl.int64)
        channel = channel.to(tl.int64)
    is_channel = channel < channels
    x_offset = n * x_stride_n + channel * x_stride_c

    acc = tl.full([BLOCK_P, BLOCK_C], 0.0, tl.float32)
    for start in range(0, PIXELS, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)  # [BLOCK_P]
        if INT64:
            pixel = pixel.to(tl.int64)
        h = pixel // width
        w = pixel - h * width
        offset = (h * x_stride_h + w * x_stride_w)[:, None] + x_offset[None, :]  # [BLOCK_P, BLOCK_C]
        acc += tl.load(x_ptr + offset, mask=(pixel < PIXELS)[:, None] & is_channel[None, :], other=0.0).to(tl.float32)

    mean = tl.div_rn(tl.sum(acc, axis=0), PIXELS * 1.0)  # [BLOCK_C]
    tl.store(out_ptr + n * out_stride_n + channel * out_stride_c, mean.to(out_ptr.dtype.element_ty), mask=is_channel)


def _check(x: Tensor) -> Result:
    check_activation(_OPERATOR, "x", x)
    n, c, h, w = x.shape
    if h == 0 or w == 0:
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} has no pixels to average")
    return Result(_OPERATOR, [n, c], x)


def _check_output(operator: str, out: Tensor, shape: list[int], x: Tensor) -> None:
    if list(out.shape) != shape or out.dtype != x.dtype or out.device != x.device:
        raise InputError(f"{operator}: out must be {shape}, {x.dtype}, on {x.device}; got {list(out.shape)}, {out.dtype}, on {out.device}")


def _run(x: Tensor, out: Tensor) -> None:
    n, c, h, w = x.shape
    launch(
        _OPERATOR,
        _global_avg_pool2d_kernel,
        (n * ceil_div(c, _BLOCK_C),),
        x,
        out,
        *x.stride(),
        *out.stride(),
        c,
        w,
        PIXELS=h * w,
        INT64=offsets_need_int64(x, out),
        BLOCK_P=_BLOCK_P,
        BLOCK_C=_BLOCK_C,
        num_warps=_NUM_WARPS,
        device=x.device,
    )


_GLOBAL_AVG_POOL2D = Operator(_OPERATOR, "Tensor x", lambda x: x, _check, _run, ONE_TENSOR._replace(check=_check_output))


def global_avg_pool2d(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The average over all pixels of each channel, summed in float32 and rounded once, in one launch.

    Args:
        x: [N, C, H, W] in float16, bfloat16 or float32. Any strides; fast for channels_last and channel slices of it.
        out: where to write, [N, C] in the dtype of x, any strides.

    Returns:
        `out`, or a new tensor, [N, C] in the dtype of x.

    Raises:
        InputError (a ValueError): x is not [N, C, H, W] with at least one pixel, or `out` does not fit.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    return _GLOBAL_AVG_POOL2D((x,), out)


def global_avg_pool2d_ref(x: Tensor, out: Tensor | None = None) -> Tensor:
    """What `global_avg_pool2d` computes, in PyTorch."""
    result = x.float().mean(dim=(2, 3)).to(x.dtype)
    return result if out is None else out.copy_(result)
