"""The device code of tma_convolution.py: the GEMM of one box of pixels out of tensor descriptors, its epilogue, and the kernel.

The product is computed transposed, output channels by pixels. The tensor cores then take the weights as their left operand, a plain tile of rows,
and the pixels as their right one, and both straight from shared memory: the compiler sees through the reshape of a loaded box only on the right,
on the left it would bring every step through registers (Triton 3.6 to 3.9).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastcnn.kernels.convolution_kernels import destination_of, pixel_offsets, round_operand


@triton.jit
def finish_box(
    acc,  # [channels, pixels], float32
    cols,  # [channels]
    pixels,  # [pixels], counted over n, p, q
    inside,  # [pixels]: which of them exist
    bias_ptr,
    residual_ptr,
    residual_stride_n, residual_stride_h, residual_stride_w,
    out_ptr,
    out_stride_n, out_stride_h, out_stride_w,
    first_channel,
    stop_channel,
    out_height,
    out_width,
    RELU: tl.constexpr,
    FLAT_OUT: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,  # as in `finish_tile`
):  # fmt: skip
    """Bias, residual, ReLU and the store of one accumulator."""
    mask = inside[:, None] & (cols < stop_channel)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols < stop_channel, other=0.0).to(tl.float32)[:, None]
    if residual_ptr is not None:
        offsets = pixel_offsets(pixels, out_height, out_width, residual_stride_n, residual_stride_h, residual_stride_w, FLAT_OUT)
        # Transposed before it is widened: the exchange between threads then moves half the bytes.
        acc += tl.load(residual_ptr + offsets[:, None] + cols[None, :], mask=mask, other=0.0).T.to(tl.float32)
    if RELU:
        # The largest of NaN and 0 is NaN in PyTorch's ReLU, and 0 in Triton's maximum unless it is told to propagate.
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    offsets = pixel_offsets(pixels, out_height, out_width, out_stride_n, out_stride_h, out_stride_w, FLAT_OUT)
    y = round_operand(acc.to(out_ptr.dtype.element_ty), INPUT_PRECISION).T
    tl.store(out_ptr + offsets[:, None] + (cols - first_channel)[None, :], y, mask=mask)


# One binary for each configuration, box and epilogue serves every layer and batch size: what describes the layer is not specialised.
@triton.jit(
    do_not_specialize=[
        *("images", "height", "width", "in_channels", "out_channels", "rows", "columns", "x_stride_n", "x_stride_h", "x_stride_w", "w_stride_s"),
        *("kernel_height", "kernel_width", "pad_h", "pad_w", "dilation_h", "dilation_w", "steps", "tiles", "tiles_h", "tiles_w", "tiles_n"),
        *("out_height", "out_width"),
    ]
)
def conv2d_tma_kernel(
    x,  # [images, height, width, in_channels], channels contiguous: a pointer, or with HOST_DESCRIPTORS a descriptor in boxes of BLOCK_K channels
    w,  # [out_channels, R·S·C_padded], contiguous: a pointer, or a descriptor in tiles of BLOCK_N × BLOCK_K
    w_extra,  # the same in tiles of EXTRA_N × BLOCK_K; None without EXTRA_N, and not used without HOST_DESCRIPTORS
    bias_ptr,  # [out_channels], or None
    residual_ptr,  # [N, P, Q, K], channels contiguous, or None
    residual_stride_n, residual_stride_h, residual_stride_w,
    destinations,  # NUM_DESTINATIONS × Destination
    images,  # N, or 1 where the pixels lie in one row
    height,  # H, or 1
    width,  # W, or N·H·W
    in_channels,
    out_channels,
    rows,  # P, or 1
    columns,  # Q, or N·P·Q
    x_stride_n, x_stride_h, x_stride_w,
    w_stride_s,  # C_padded
    kernel_height,
    kernel_width,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    steps,  # R·S·⌈C / BLOCK_K⌉
    tiles,  # all of them
    tiles_h,  # boxes in a column of one image
    tiles_w,  # boxes in a row
    tiles_n,  # tiles of channels, over all destinations
    out_height,  # P
    out_width,  # Q
    NUM_DESTINATIONS: tl.constexpr,
    HOST_DESCRIPTORS: tl.constexpr,
    FLAT_OUT: tl.constexpr,  # out and residual step over all pixels with one stride
    RELU: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in float32: Triton's interpreter takes bfloat16 for integers
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXTRA_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """The tiles of one program: one of them, or with WARP_SPECIALIZE every num_programs-th."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    if HOST_DESCRIPTORS:
        x_desc = x
        w_desc = w
        extra_desc = w_extra
    else:
        w_stride_k = kernel_height * kernel_width * w_stride_s
        x_desc = tl.make_tensor_descriptor(
            x, [images, height, width, in_channels], [x_stride_n, x_stride_h, x_stride_w, 1], [BOX_N, BOX_H, BOX_W, BLOCK_K]
        )
        w_desc = tl.make_tensor_descriptor(w, [out_channels, w_stride_k], [w_stride_k, 1], [BLOCK_N, BLOCK_K])
        if EXTRA_N > 0:
            extra_desc = tl.make_tensor_descriptor(w, [out_channels, w_stride_k], [w_stride_k, 1], [EXTRA_N, BLOCK_K])
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), warp_specialize=WARP_SPECIALIZE):
        # Channel tiles run fastest: the programs that read the same pixels run at the same time, and the whole weight stays in L2 anyway.
        tile_n = tile % tiles_n
        box = tile // tiles_n
        first_q = box % tiles_w * BOX_W
        first_p = box // tiles_w % tiles_h * BOX_H
        first_n = box // (tiles_w * tiles_h) * BOX_N
        out_ptr, out_stride_n, out_stride_h, out_stride_w, first_channel, stop_channel, first_tile = destination_of(
            destinations, tile_n, NUM_DESTINATIONS
        )
        k = first_channel + (tile_n - first_tile) * (BLOCK_N + EXTRA_N)
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        if EXTRA_N > 0:
            extra_acc = tl.zeros((EXTRA_N, BLOCK_M), dtype=tl.float32)
        # Counters instead of divisions: the same loop serves sizes known only at run time.
        c = 0
        r = 0
        s = 0
        for _ in tl.range(0, steps, num_stages=NUM_STAGES):
            # What lies outside of the image loads zeros, and so do channels from in_channels on, whatever is beside the slice in memory. The
            # weights beside C_padded are those of the next tap: they meet these zeros.
            pixels_in = x_desc.load([first_n, first_p - pad_h + r * dilation_h, first_q - pad_w + s * dilation_w, c])
            depth = (r * kernel_width + s) * w_stride_s + c
            right = pixels_in.reshape(BLOCK_M, BLOCK_K).T
            left = w_desc.load([k, depth])
            if UPCAST:
                right = right.to(tl.float32)
                left = left.to(tl.float32)
            acc = tl.dot(left, right, acc, input_precision=INPUT_PRECISION)
            if EXTRA_N > 0:
                extra = extra_desc.load([k + BLOCK_N, depth])
                if UPCAST:
                    extra = extra.to(tl.float32)
                extra_acc = tl.dot(extra, right, extra_acc, input_precision=INPUT_PRECISION)
            c += BLOCK_K
            s = tl.where(c >= in_channels, s + 1, s)
            c = tl.where(c >= in_channels, 0, c)
            r = tl.where(s == kernel_width, r + 1, r)
            s = tl.where(s == kernel_width, 0, s)
        index = tl.arange(0, BLOCK_M)
        n = first_n + index // (BOX_W * BOX_H)
        p = first_p + index // BOX_W % BOX_H
        q = first_q + index % BOX_W
        inside = (n < images) & (p < rows) & (q < columns)
        # Counted over the tensor as it is tiled, which is the count over the output too: flat pixels are counted the same way.
        pixels = (n * rows + p) * columns + q
        finish_box(
            acc, k + tl.arange(0, BLOCK_N), pixels, inside, bias_ptr, residual_ptr, residual_stride_n,
            residual_stride_h, residual_stride_w, out_ptr, out_stride_n, out_stride_h, out_stride_w, first_channel,
            stop_channel, out_height, out_width, RELU, FLAT_OUT, INPUT_PRECISION,
        )  # fmt: skip
        if EXTRA_N > 0:
            finish_box(
                extra_acc, k + BLOCK_N + tl.arange(0, EXTRA_N), pixels, inside, bias_ptr, residual_ptr,
                residual_stride_n, residual_stride_h, residual_stride_w, out_ptr, out_stride_n, out_stride_h,
                out_stride_w, first_channel, stop_channel, out_height, out_width, RELU, FLAT_OUT, INPUT_PRECISION,
            )  # fmt: skip
