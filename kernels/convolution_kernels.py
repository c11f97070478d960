"""The device code of convolution.py: the problem as the kernels take it, the gathered GEMM of one tile, its epilogue, and the kernels themselves.

The mathematics are in convolution.py; convolution_group.py and stem.py share the tile. Problems and destinations travel as named tuples, which Triton
flattens into plain arguments. What depends on the batch size is kept out of them, and is not specialised: one binary serves every batch size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Problem(NamedTuple):
    """One convolution, as the kernels take it. Strides are in elements; pointers are tensors."""

    x_ptr: Any  # [N, H, W, C], channels contiguous
    w_ptr: Any  # [K, R, S, C_padded], contiguous
    bias_ptr: Any  # [K], or None
    residual_ptr: Any  # [N, P, Q, K], channels contiguous, or None
    height: Any  # H
    width: Any  # W
    in_channels: Any  # C
    out_height: Any  # P
    out_width: Any  # Q
    out_channels: Any  # K
    x_stride_n: Any
    x_stride_h: Any
    x_stride_w: Any
    w_stride_k: Any  # R·S·C_padded
    w_stride_s: Any  # C_padded
    residual_stride_n: Any
    residual_stride_h: Any
    residual_stride_w: Any


class Destination(NamedTuple):
    """Where output channels first_channel … stop_channel go: `out_ptr` [N, P, Q, stop_channel − first_channel], channels contiguous."""

    out_ptr: Any
    out_stride_n: Any
    out_stride_h: Any
    out_stride_w: Any
    first_channel: Any
    stop_channel: Any
    first_tile: Any  # tiles of BLOCK_N channels in the destinations before this one


@triton.jit
def pixel_offsets(rows, out_height, out_width, stride_n, stride_h, stride_w, FLAT: tl.constexpr):
    """Offsets, int64, of the pixels `rows` (counted over n, p, q) in a tensor with these strides."""
    if FLAT:
        offsets = rows.to(tl.int64) * stride_w
    else:
        q = rows % out_width
        p = rows // out_width % out_height
        n = rows // (out_width * out_height)
        offsets = n.to(tl.int64) * stride_n + p.to(tl.int64) * stride_h + q.to(tl.int64) * stride_w
    return offsets


@triton.jit
def start_tile(
    rows,
    cols,
    residual_ptr,
    residual_pixels,  # rows from here on have no residual
    residual_stride_n, residual_stride_h, residual_stride_w,
    stop_channel,
    out_height,
    out_width,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The residual, or zeros: [BLOCK_M, BLOCK_N], float32. Added first, while the registers of the reduction are still free, not last."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if residual_ptr is not None:
        offsets = pixel_offsets(rows, out_height, out_width, residual_stride_n, residual_stride_h, residual_stride_w, FLAT)
        mask = (rows < residual_pixels)[:, None] & (cols < stop_channel)[None, :]
        acc += tl.load(residual_ptr + offsets[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    return acc


@triton.jit
def implicit_gemm(
    acc,  # [BLOCK_M, BLOCK_N], float32: what the sums start from
    x_ptr,
    w_ptr,
    rows,  # [BLOCK_M] pixels, all of them within the tensor
    cols,  # [BLOCK_N] output channels, all of them within the weight
    height,
    width,
    in_channels,
    out_height,
    out_width,
    x_stride_n, x_stride_h, x_stride_w,
    w_stride_k,
    w_stride_s,
    kernel_height,
    kernel_width,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    first_step,
    last_step,
    POINTWISE: tl.constexpr,
    EVEN_C: tl.constexpr,
    CHANNELS_OUTER: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in float32: Triton's interpreter takes bfloat16 for integers
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`acc` plus the products of steps first_step … last_step of the reduction."""
    depth = tl.arange(0, BLOCK_K)
    # [BLOCK_K, BLOCK_N], the reduction contiguous
    w_ptrs = w_ptr + cols[None, :] * w_stride_k + depth[:, None]
    if POINTWISE:
        x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * x_stride_w + depth[None, :]
        for step in range(first_step, last_step):
            c = step * BLOCK_K
            if EVEN_C:
                x = tl.load(x_ptrs + c)
                w = tl.load(w_ptrs + c)
            else:
                x = tl.load(x_ptrs + c, mask=depth[None, :] < in_channels - c, other=0.0)
                w = tl.load(w_ptrs + c, mask=depth[:, None] < w_stride_s - c, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            acc = tl.dot(x, w, acc, input_precision=INPUT_PRECISION)
    else:
        top = rows // out_width % out_height * stride_h - pad_h
        left = rows % out_width * stride_w - pad_w
        n = rows // (out_width * out_height)
        # The corner of a padded window lies outside the image: an address that is only ever loaded through the mask.
        corner = n.to(tl.int64) * x_stride_n + top.to(tl.int64) * x_stride_h + left.to(tl.int64) * x_stride_w
        x_ptrs = x_ptr + corner[:, None] + depth[None, :]
        # Counters instead of divisions: the same loop serves sizes known only at run time.
        if CHANNELS_OUTER:
            tap = first_step % (kernel_height * kernel_width)
            c = first_step // (kernel_height * kernel_width) * BLOCK_K
        else:
            channel_steps = tl.cdiv(in_channels, BLOCK_K)
            tap = first_step // channel_steps
            c = first_step % channel_steps * BLOCK_K
        r = tap // kernel_width
        s = tap % kernel_width
        for _ in range(first_step, last_step):
            h = top + r * dilation_h
            w_col = left + s * dilation_w
            inside = (h >= 0) & (h < height) & (w_col >= 0) & (w_col < width)
            x_step = r * dilation_h * x_stride_h + s * dilation_w * x_stride_w + c
            w_step = (r * kernel_width + s) * w_stride_s + c
            if EVEN_C:
                x = tl.load(x_ptrs + x_step, mask=inside[:, None], other=0.0)
                w = tl.load(w_ptrs + w_step)
            else:
                x = tl.load(x_ptrs + x_step, mask=inside[:, None] & (depth[None, :] < in_channels - c), other=0.0)
                w = tl.load(w_ptrs + w_step, mask=depth[:, None] < w_stride_s - c, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            acc = tl.dot(x, w, acc, input_precision=INPUT_PRECISION)
            if CHANNELS_OUTER:
                s += 1
                r = tl.where(s == kernel_width, r + 1, r)
                s = tl.where(s == kernel_width, 0, s)
                c = tl.where(r == kernel_height, c + BLOCK_K, c)
                r = tl.where(r == kernel_height, 0, r)
            else:
                c += BLOCK_K
                s = tl.where(c >= in_channels, s + 1, s)
                c = tl.where(c >= in_channels, 0, c)
                r = tl.where(s == kernel_width, r + 1, r)
                s = tl.where(s == kernel_width, 0, s)
    return acc


@triton.jit
def round_operand(values, INPUT_PRECISION: tl.constexpr):
    """float32 values that tensor cores are to read as TF32, rounded to nearest; others as they are, and NaN stays NaN.

    The tensor cores ignore the low 13 bits, which would shrink every product, always in the same direction.
    """
    if INPUT_PRECISION == "tf32" and values.dtype == tl.float32:
        rounded = ((values.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        values = tl.where(values == values, rounded, values)
    return values


@triton.jit
def finish_tile(
    acc,  # [BLOCK_M, BLOCK_N], float32
    rows,
    cols,
    bias_ptr,
    bias_channels,  # cols from here on have no bias
    out_ptr,
    out_stride_n, out_stride_h, out_stride_w,
    first_channel,
    stop_channel,
    pixels,
    out_height,
    out_width,
    relu,
    FLAT: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,  # of the next convolution's operands, which these are: the whole network has one
):  # fmt: skip
    """Bias, ReLU and the store of one tile into its destination."""
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols < bias_channels, other=0.0).to(tl.float32)[None, :]
    stored = (rows < pixels)[:, None] & (cols < stop_channel)[None, :]
    # The largest of NaN and 0 is NaN in PyTorch's ReLU, and 0 in Triton's maximum unless it is told to propagate.
    acc = tl.where(relu, tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL), acc)
    offsets = pixel_offsets(rows, out_height, out_width, out_stride_n, out_stride_h, out_stride_w, FLAT)
    y = round_operand(acc.to(out_ptr.dtype.element_ty), INPUT_PRECISION)
    tl.store(out_ptr + offsets[:, None] + (cols - first_channel)[None, :], y, mask=stored)


@triton.jit
def destination_of(destinations, tile_n, NUM_DESTINATIONS: tl.constexpr):
    """The fields of the destination that holds channel tile `tile_n`."""
    out_ptr = destinations[0].out_ptr
    stride_n = destinations[0].out_stride_n
    stride_h = destinations[0].out_stride_h
    stride_w = destinations[0].out_stride_w
    first_channel = destinations[0].first_channel
    stop_channel = destinations[0].stop_channel
    first_tile = destinations[0].first_tile
    for i in tl.static_range(1, NUM_DESTINATIONS):
        here = tile_n >= destinations[i].first_tile
        out_ptr = tl.where(here, destinations[i].out_ptr, out_ptr)
        stride_n = tl.where(here, destinations[i].out_stride_n, stride_n)
        stride_h = tl.where(here, destinations[i].out_stride_h, stride_h)
        stride_w = tl.where(here, destinations[i].out_stride_w, stride_w)
        first_channel = tl.where(here, destinations[i].first_channel, first_channel)
        stop_channel = tl.where(here, destinations[i].stop_channel, stop_channel)
        first_tile = tl.where(here, destinations[i].first_tile, first_tile)
    return out_ptr, stride_n, stride_h, stride_w, first_channel, stop_channel, first_tile


@triton.jit(do_not_specialize=["pixels"])
def conv2d_kernel(
    pixels,  # N·P·Q
    problem,  # Problem
    destinations,  # NUM_DESTINATIONS × Destination; with SPLIT_K > 1 one, whose out_ptr is the workspace [SPLIT_K, N·P·Q, K], float32
    tiles_n,  # tiles of BLOCK_N channels, over all destinations
    R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    CHANNEL_STEPS: tl.constexpr,
    NUM_DESTINATIONS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    POINTWISE: tl.constexpr,
    EVEN_C: tl.constexpr,
    FLAT: tl.constexpr,
    RELU: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS_OUTER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of pixels and output channels, of all of the reduction or of one of its SPLIT_K parts."""
    # Channel tiles run fastest: the programs that read the same pixels run at the same time, and the whole weight stays in L2 anyway.
    tile_m = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    part = tl.program_id(1)
    out_ptr, out_stride_n, out_stride_h, out_stride_w, first_channel, stop_channel, first_tile = destination_of(
        destinations, tile_n, NUM_DESTINATIONS
    )
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = first_channel + (tile_n - first_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps: tl.constexpr = R * S * CHANNEL_STEPS
    if SPLIT_K > 1:
        first_step = part * steps // SPLIT_K
        last_step = (part + 1) * steps // SPLIT_K
    else:
        first_step = 0
        last_step = steps
    acc = start_tile(
        rows, cols, problem.residual_ptr, pixels, problem.residual_stride_n, problem.residual_stride_h,
        problem.residual_stride_w, stop_channel, problem.out_height, problem.out_width, FLAT, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    # Rows and columns past the end repeat the last one instead of being masked: they are computed and not stored.
    acc = implicit_gemm(
        acc, problem.x_ptr, problem.w_ptr, tl.minimum(rows, pixels - 1), tl.minimum(cols, stop_channel - 1),
        problem.height, problem.width, problem.in_channels, problem.out_height, problem.out_width,
        problem.x_stride_n, problem.x_stride_h, problem.x_stride_w, problem.w_stride_k, problem.w_stride_s, R, S,
        STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, first_step, last_step, POINTWISE, EVEN_C,
        CHANNELS_OUTER, INPUT_PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if SPLIT_K > 1:
        out_ptr += part.to(tl.int64) * pixels * problem.out_channels
    finish_tile(
        acc, rows, cols, problem.bias_ptr, stop_channel, out_ptr, out_stride_n, out_stride_h, out_stride_w,
        first_channel, stop_channel, pixels, problem.out_height, problem.out_width, RELU, FLAT,
        INPUT_PRECISION if SPLIT_K == 1 else "ieee",
    )  # fmt: skip


@triton.jit(do_not_specialize=["pixels"])
def sum_parts_kernel(
    pixels,
    problem,  # Problem; of its pointers only bias and residual are used
    destinations,  # NUM_DESTINATIONS × Destination
    workspace_ptr,  # [parts, N·P·Q, K], float32
    parts,
    tiles_n,
    NUM_DESTINATIONS: tl.constexpr,
    FLAT: tl.constexpr,
    RELU: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum of the parts of one tile, in order, and its epilogue."""
    tile_m = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    out_ptr, out_stride_n, out_stride_h, out_stride_w, first_channel, stop_channel, first_tile = destination_of(
        destinations, tile_n, NUM_DESTINATIONS
    )
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = first_channel + (tile_n - first_tile) * BLOCK_N + tl.arange(0, BLOCK_N)
    stored = (rows < pixels)[:, None] & (cols < stop_channel)[None, :]
    part_ptrs = workspace_ptr + rows.to(tl.int64)[:, None] * problem.out_channels + cols[None, :]
    acc = start_tile(
        rows, cols, problem.residual_ptr, pixels, problem.residual_stride_n, problem.residual_stride_h,
        problem.residual_stride_w, stop_channel, problem.out_height, problem.out_width, FLAT, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    for _ in range(parts):
        acc += tl.load(part_ptrs, mask=stored, other=0.0)
        part_ptrs += pixels.to(tl.int64) * problem.out_channels
    finish_tile(
        acc, rows, cols, problem.bias_ptr, stop_channel, out_ptr, out_stride_n, out_stride_h, out_stride_w,
        first_channel, stop_channel, pixels, problem.out_height, problem.out_width, RELU, FLAT, INPUT_PRECISION,
    )  # fmt: skip
