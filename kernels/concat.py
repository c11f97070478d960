"""Concatenation of branches along the channels, with bias and ReLU on the way: what closes an Inception block.

    out[n, offset_i + c, h, w] = relu(branch_i[n, c, h, w] + bias_i[c]),    offset_i = C_0 + … + C_{i-1}

Meant for branches that end in a convolution of a library which can neither write into a slice nor fuse the epilogue: bias, ReLU and concat cost one
read and one write of the activations. Inception blocks: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
arXiv:1512.00567.

The memory of a branch is treated as a list of vectors, each up to 16 bytes of neighbouring channels of one pixel. A program takes BLOCK_V consecutive
vectors of one branch, whatever mixture of pixels that is, so a branch of 32 channels fills its lanes as well as one of 320, and only the last program
of a branch holds idle lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.launching import (
    ceil_div,
    check_activation,
    check_bias,
    has_flat_pixels,
    launch,
    offsets_need_int64,
    pixel_stride,
    vector_width,
)
from fastcnn.kernels.operators import Operator, Result

# Branches of one launch. More are served by several launches into the same output.
MAX_BRANCHES = 8

# Vectors for each program, with 4 warps. Large tensors: 8 vectors for each thread, enough loads in flight to cover the latency of device memory.
# Small ones (a block of Inception-v3 at batch 1 has 10 to 45 thousand vectors): one for each thread, so that every multiprocessor gets some.
_LARGE_BLOCK_V, _SMALL_BLOCK_V, _NUM_WARPS = 1024, 128, 4
# From here on the large blocks alone are four for each of 132 multiprocessors.
_LARGE_FROM_VECTORS = 4 * 132 * _LARGE_BLOCK_V


# Triton compiles anew for every pattern of integers that are 1 or divisible by 16, and with 40 integers every block of a network would be a new one.
# Here flags and VEC alone distinguish variants; counts and strides are given in vectors, so the compiler sees that they are multiples of VEC.
@triton.jit(
    do_not_specialize=[
        *("pixels", "height", "width", "bias_branches", "out_stride_n", "out_stride_h", "out_stride_w"),
        *(f"vectors_{i}" for i in range(MAX_BRANCHES)),
        *(f"x{i}_stride_{axis}" for i in range(MAX_BRANCHES) for axis in "nchw"),
    ]
)
def _concat_relu_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr,  # [N, C_i, H, W] each; None from BRANCHES on
    bias0_ptr, bias1_ptr, bias2_ptr, bias3_ptr, bias4_ptr, bias5_ptr, bias6_ptr, bias7_ptr,  # [C_i] each; any bias where a branch has none
    out_ptr,  # [N, sum of C_i, H, W], channels next to each other, at the first channel of branch 0
    vectors_0, vectors_1, vectors_2, vectors_3, vectors_4, vectors_5, vectors_6, vectors_7,  # C_i / VEC
    # In vectors where FLAT_PIXELS (which needs the last one only), else in elements.
    x0_stride_n, x0_stride_c, x0_stride_h, x0_stride_w,
    x1_stride_n, x1_stride_c, x1_stride_h, x1_stride_w,
    x2_stride_n, x2_stride_c, x2_stride_h, x2_stride_w,
    x3_stride_n, x3_stride_c, x3_stride_h, x3_stride_w,
    x4_stride_n, x4_stride_c, x4_stride_h, x4_stride_w,
    x5_stride_n, x5_stride_c, x5_stride_h, x5_stride_w,
    x6_stride_n, x6_stride_c, x6_stride_h, x6_stride_w,
    x7_stride_n, x7_stride_c, x7_stride_h, x7_stride_w,
    out_stride_n, out_stride_h, out_stride_w,  # in vectors
    pixels,  # N · H · W
    height,
    width,
    bias_branches,  # bit i: branch i has a bias
    BRANCHES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    FLAT_PIXELS: tl.constexpr,  # one stride steps over all pixels of every tensor, and channels are next to each other
    INT64: tl.constexpr,
    VEC: tl.constexpr,  # channels of one vector; divides every C_i, and every pixel starts at a multiple of it
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    x_ptrs = (x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr)
    bias_ptrs = (bias0_ptr, bias1_ptr, bias2_ptr, bias3_ptr, bias4_ptr, bias5_ptr, bias6_ptr, bias7_ptr)
    vectors_per_pixel_of = (vectors_0, vectors_1, vectors_2, vectors_3, vectors_4, vectors_5, vectors_6, vectors_7)
    strides_n = (x0_stride_n, x1_stride_n, x2_stride_n, x3_stride_n, x4_stride_n, x5_stride_n, x6_stride_n, x7_stride_n)
    strides_c = (x0_stride_c, x1_stride_c, x2_stride_c, x3_stride_c, x4_stride_c, x5_stride_c, x6_stride_c, x7_stride_c)
    strides_h = (x0_stride_h, x1_stride_h, x2_stride_h, x3_stride_h, x4_stride_h, x5_stride_h, x6_stride_h, x7_stride_h)
    strides_w = (x0_stride_w, x1_stride_w, x2_stride_w, x3_stride_w, x4_stride_w, x5_stride_w, x6_stride_w, x7_stride_w)

    program = tl.program_id(0)
    if INT64:
        program = program.to(tl.int64)
        pixels = pixels.to(tl.int64)

    # Programs are dealt to the branches in order; scalars of the branch that this one belongs to are selected, so there is one path through the code.
    branch = 0
    first_program = 0
    first_vector = 0  # of the branch's slice of an output pixel
    next_program = 0
    next_vector = 0
    x_ptr = x_ptrs[0]
    bias_ptr = bias_ptrs[0]
    vectors_per_pixel = vectors_per_pixel_of[0]
    x_stride_n = strides_n[0]
    x_stride_c = strides_c[0]
    x_stride_h = strides_h[0]
    x_stride_w = strides_w[0]
    for i in tl.static_range(1, BRANCHES):
        next_program += tl.cdiv(pixels * vectors_per_pixel_of[i - 1], BLOCK_V)
        next_vector += vectors_per_pixel_of[i - 1]
        reached = program >= next_program
        branch = tl.where(reached, i, branch)
        first_program = tl.where(reached, next_program, first_program)
        first_vector = tl.where(reached, next_vector, first_vector)
        x_ptr = tl.where(reached, x_ptrs[i], x_ptr)
        vectors_per_pixel = tl.where(reached, vectors_per_pixel_of[i], vectors_per_pixel)
        x_stride_w = tl.where(reached, strides_w[i], x_stride_w)
        if HAS_BIAS:
            bias_ptr = tl.where(reached, bias_ptrs[i], bias_ptr)
        if not FLAT_PIXELS:
            x_stride_n = tl.where(reached, strides_n[i], x_stride_n)
            x_stride_c = tl.where(reached, strides_c[i], x_stride_c)
            x_stride_h = tl.where(reached, strides_h[i], x_stride_h)

    # One dimension throughout, so that index, mask, load and store share one layout. The VEC elements of a thread share one division: all steps on
    # `vector` are the same for them, which the compiler sees.
    vectors = pixels * vectors_per_pixel
    element = (program - first_program) * (BLOCK_V * VEC) + tl.arange(0, BLOCK_V * VEC)  # [BLOCK_V · VEC]
    vector = element // VEC
    is_inside = vector < vectors
    pixel = vector // vectors_per_pixel
    channel = (vector - pixel * vectors_per_pixel) * VEC + element % VEC

    if FLAT_PIXELS:
        x_offset = pixel * x_stride_w * VEC + channel
        out_offset = (pixel * out_stride_w + first_vector) * VEC + channel
    else:
        row = pixel // width
        w = pixel - row * width
        n = row // height
        h = row - n * height
        x_offset = n * x_stride_n + h * x_stride_h + w * x_stride_w + channel * x_stride_c
        out_offset = (n * out_stride_n + h * out_stride_h + w * out_stride_w + first_vector) * VEC + channel

    # Read once: evicted first, so that the output stays in L2 for the layer that reads it.
    x = tl.load(x_ptr + x_offset, mask=is_inside, eviction_policy="evict_first")
    if HAS_BIAS or RELU:
        y = x.to(tl.float32)
        if HAS_BIAS:
            has_bias = vector < vectors * ((bias_branches >> branch) & 1)
            # Selected, for adding 0.0 would turn -0.0 into 0.0, and Triton 3.6 takes -0.0 for 0.0.
            y = tl.where(has_bias, y + tl.load(bias_ptr + channel, mask=has_bias, other=0.0).to(tl.float32), y)
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # a comparison, for it keeps NaN
        x = y.to(x.dtype)
    tl.store(out_ptr + out_offset, x, mask=is_inside)


class _Arguments(NamedTuple):
    branches: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    relu: bool


def _check(arguments: _Arguments) -> Result:
    branches, biases = arguments.branches, arguments.biases
    if not branches:
        raise InputError("concat_relu: needs at least one branch, got none")
    if len(biases) != len(branches):
        raise InputError(f"concat_relu: needs one bias (or None) for each of {len(branches)} branches, got {len(biases)}")
    first = branches[0]
    for i, (branch, bias) in enumerate(zip(branches, biases, strict=True)):
        check_activation("concat_relu", f"branch {i}", branch, like=first)
        if (branch.shape[0], *branch.shape[2:]) != (first.shape[0], *first.shape[2:]):
            raise InputError(f"concat_relu: branch {i} of shape {list(branch.shape)} may differ from branch 0, {list(first.shape)}, in channels only")
        check_bias("concat_relu", f"bias {i}", bias, branch.shape[1], branch)
    bias_dtypes = {bias.dtype for bias in biases if bias is not None}
    if len(bias_dtypes) > 1:
        raise InputError(f"concat_relu: biases must share one dtype, got {' and '.join(sorted(map(str, bias_dtypes)))}")
    n, _, h, w = first.shape
    return Result("concat_relu", [n, sum(branch.shape[1] for branch in branches), h, w], first)


def _launch(branches: Sequence[Tensor], biases: Sequence[Tensor | None], relu: bool, out: Tensor) -> None:
    """One launch: at most MAX_BRANCHES branches, none without channels, into `out` [N, sum of C_i, H, W]."""
    n, _, h, w = out.shape
    flat_pixels = all(has_flat_pixels(tensor) for tensor in (*branches, out))
    # Strided branches are read channel by channel: only the output is asked to be aligned.
    vec = vector_width([branch.shape[1] for branch in branches], (out, *branches) if flat_pixels else (out,))
    vectors = [branch.shape[1] // vec for branch in branches]
    total = n * h * w * sum(vectors)
    block_v = _LARGE_BLOCK_V if total >= _LARGE_FROM_VECTORS else _SMALL_BLOCK_V
    some_bias = next((bias for bias in biases if bias is not None), None)
    absent = MAX_BRANCHES - len(branches)
    if flat_pixels:
        strides: list[tuple[int, ...]] = [(0, 0, 0, pixel_stride(branch) // vec) for branch in branches]
        out_strides = (0, 0, pixel_stride(out) // vec)
    else:
        strides = [branch.stride() for branch in branches]
        out_strides = (out.stride(0) // vec, out.stride(2) // vec, out.stride(3) // vec)
    launch(
        "concat_relu",
        _concat_relu_kernel,
        (sum(ceil_div(n * h * w * count, block_v) for count in vectors),),
        *branches,
        *[None] * absent,
        *(some_bias if bias is None else bias for bias in biases),
        *[None] * absent,
        out,
        *vectors,
        *[0] * absent,
        *(stride for branch_strides in strides for stride in branch_strides),
        *[0] * 4 * absent,
        *out_strides,
        n * h * w,
        h,
        w,
        sum(1 << i for i, bias in enumerate(biases) if bias is not None),
        BRANCHES=len(branches),
        HAS_BIAS=some_bias is not None,
        RELU=relu,
        FLAT_PIXELS=flat_pixels,
        INT64=offsets_need_int64(*branches, out),
        VEC=vec,
        BLOCK_V=block_v,
        num_warps=_NUM_WARPS,
        device=out.device,
    )


def _run(arguments: _Arguments, out: Tensor) -> None:
    offset = 0
    filled = [(branch, bias) for branch, bias in zip(arguments.branches, arguments.biases, strict=True) if branch.shape[1]]
    for start in range(0, len(filled), MAX_BRANCHES):
        some_branches, some_biases = zip(*filled[start : start + MAX_BRANCHES], strict=True)
        channels = sum(branch.shape[1] for branch in some_branches)
        _launch(some_branches, some_biases, arguments.relu, out.narrow(1, offset, channels))
        offset += channels


_CONCAT_RELU = Operator("concat_relu", "Tensor[] branches, Tensor?[] biases, bool relu", _Arguments, _check, _run)


def concat_relu(branches: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None, relu: bool = True, out: Tensor | None = None) -> Tensor:
    """Concatenates branches along the channels, adding a bias and applying ReLU on the way, in one launch for up to 8 branches.

    Without bias and ReLU the bits are copied. With them the sum is computed in float32 and rounded once. NaN stays NaN.

    Args:
        branches: one or more tensors [N, C_i, H, W] of one dtype (float16, bfloat16, float32) on one device. Any strides; fast for channels_last and
            for channel slices of it, several times slower for NCHW-contiguous ones, whose channels do not lie next to each other.
        biases: for each branch a vector [C_i] or None; all of them in float32 or all in the dtype of the branches. None: no bias at all.
        relu: whether ReLU follows.
        out: where to write, [N, sum of C_i, H, W]: channels_last or a channel slice of a larger channels_last buffer. Must not overlap the branches.

    Returns:
        `out`, or a new channels_last tensor.

    Raises:
        InputError (a ValueError): shapes, dtypes or devices do not fit together.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    return _CONCAT_RELU(_Arguments(branches, [None] * len(branches) if biases is None else biases, relu), out)


def concat_relu_ref(
    branches: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None, relu: bool = True, out: Tensor | None = None
) -> Tensor:
    """What `concat_relu` computes, in PyTorch."""
    parts = []
    for branch, bias in zip(branches, [None] * len(branches) if biases is None else biases, strict=True):
        y = branch if bias is None else branch.float() + bias.float().view(1, -1, 1, 1)
        parts.append((torch.relu(y) if relu else y).to(branch.dtype))
    result = torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)
    return result if out is None else out.copy_(result)
