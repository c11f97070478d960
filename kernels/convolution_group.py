"""Independent convolutions of one dependency level in one launch.

The mathematics are those of convolution.py, for up to four convolutions that share nothing but dtype and tile shape: the tiles of all of them
are dealt to the programs of one grid, and a program finds its convolution by comparing its number with the first tile of each. At batch 1 the
branches of an Inception block do not fill a GPU one by one, and each launch costs about as long as its work (lineage: grouped GEMM, as in CUTLASS).

Kernel size, stride, padding and channel counts are arguments here, not constants: one binary serves many combinations of branches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_configs import ConvConfig
from fastcnn.kernels.convolution_kernels import finish_tile, implicit_gemm, start_tile
from fastcnn.kernels.convolution_problem import Convolution, check_input_precision, check_problem, convolve, pick_config, size_of
from fastcnn.kernels.launching import ceil_div, check_output, has_flat_pixels, launch, needs_upcast, pixel_strides
from fastcnn.kernels.operators import register

MAX_CONVOLUTIONS = 4

_OPERATOR = "conv2d_group"


class GroupedConv(NamedTuple):
    """One convolution of a group, and where it writes: [N, K, P, Q], channels_last or a slice of it; allocated if None."""

    convolution: Convolution
    out: Tensor | None = None


class GroupMember(NamedTuple):
    """One convolution, as the kernel takes it. Strides are in elements; pointers are tensors."""

    x_ptr: Any  # [N, H, W, C], channels contiguous
    w_ptr: Any  # [K, R, S, C_padded], contiguous
    bias_ptr: Any  # [K], or any bias where bias_channels is 0; None if no member has one
    bias_channels: Any  # K, or 0 for no bias
    residual_ptr: Any  # [N, P, Q, K], or any tensor where has_residual is 0; None if no member has one
    has_residual: Any  # 0 or 1
    relu: Any  # 0 or 1
    out_ptr: Any  # [N, P, Q, K], channels contiguous
    height: Any
    width: Any
    in_channels: Any
    out_height: Any
    out_width: Any
    out_channels: Any
    tiles_n: Any  # tiles of BLOCK_N channels
    kernel_height: Any
    kernel_width: Any
    stride_h: Any
    stride_w: Any
    pad_h: Any
    pad_w: Any
    dilation_h: Any
    dilation_w: Any
    x_stride_n: Any
    x_stride_h: Any
    x_stride_w: Any
    w_stride_k: Any
    w_stride_s: Any
    residual_stride_n: Any
    residual_stride_h: Any
    residual_stride_w: Any
    out_stride_n: Any
    out_stride_h: Any
    out_stride_w: Any


@triton.jit(do_not_specialize=[f"{name}_{i}" for name in ("pixels", "first_tile") for i in range(MAX_CONVOLUTIONS)])
def _conv2d_group_kernel(
    pixels_0, pixels_1, pixels_2, pixels_3,  # N·P·Q of each member
    first_tile_1, first_tile_2, first_tile_3,  # tiles of the members before it
    members,  # NUM_MEMBERS × GroupMember
    NUM_MEMBERS: tl.constexpr,
    ANY_BIAS: tl.constexpr,
    ANY_RESIDUAL: tl.constexpr,
    EVEN_C: tl.constexpr,
    FLAT: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    CHANNELS_OUTER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    all_pixels = (pixels_0, pixels_1, pixels_2, pixels_3)
    first_tiles = (0, first_tile_1, first_tile_2, first_tile_3)
    tile = tl.program_id(0)

    # Scalars of the member that this program belongs to are selected, so there is one path through the code and one set of registers.
    pixels = all_pixels[0]
    first_tile = 0
    x_ptr = members[0].x_ptr
    w_ptr = members[0].w_ptr
    bias_ptr = members[0].bias_ptr
    bias_channels = members[0].bias_channels
    has_residual = members[0].has_residual
    relu = members[0].relu
    out_ptr = members[0].out_ptr
    height = members[0].height
    width = members[0].width
    in_channels = members[0].in_channels
    out_height = members[0].out_height
    out_width = members[0].out_width
    out_channels = members[0].out_channels
    tiles_n = members[0].tiles_n
    kernel_height = members[0].kernel_height
    kernel_width = members[0].kernel_width
    stride_h = members[0].stride_h
    stride_w = members[0].stride_w
    pad_h = members[0].pad_h
    pad_w = members[0].pad_w
    dilation_h = members[0].dilation_h
    dilation_w = members[0].dilation_w
    x_stride_n = members[0].x_stride_n
    x_stride_h = members[0].x_stride_h
    x_stride_w = members[0].x_stride_w
    w_stride_k = members[0].w_stride_k
    w_stride_s = members[0].w_stride_s
    residual_stride_n = members[0].residual_stride_n
    residual_stride_h = members[0].residual_stride_h
    residual_stride_w = members[0].residual_stride_w
    out_stride_n = members[0].out_stride_n
    out_stride_h = members[0].out_stride_h
    out_stride_w = members[0].out_stride_w
    residual_ptr = members[0].residual_ptr
    for i in tl.static_range(1, NUM_MEMBERS):
        reached = tile >= first_tiles[i]
        pixels = tl.where(reached, all_pixels[i], pixels)
        first_tile = tl.where(reached, first_tiles[i], first_tile)
        x_ptr = tl.where(reached, members[i].x_ptr, x_ptr)
        w_ptr = tl.where(reached, members[i].w_ptr, w_ptr)
        if ANY_BIAS:
            bias_ptr = tl.where(reached, members[i].bias_ptr, bias_ptr)
        bias_channels = tl.where(reached, members[i].bias_channels, bias_channels)
        has_residual = tl.where(reached, members[i].has_residual, has_residual)
        relu = tl.where(reached, members[i].relu, relu)
        out_ptr = tl.where(reached, members[i].out_ptr, out_ptr)
        height = tl.where(reached, members[i].height, height)
        width = tl.where(reached, members[i].width, width)
        in_channels = tl.where(reached, members[i].in_channels, in_channels)
        out_height = tl.where(reached, members[i].out_height, out_height)
        out_width = tl.where(reached, members[i].out_width, out_width)
        out_channels = tl.where(reached, members[i].out_channels, out_channels)
        tiles_n = tl.where(reached, members[i].tiles_n, tiles_n)
        kernel_height = tl.where(reached, members[i].kernel_height, kernel_height)
        kernel_width = tl.where(reached, members[i].kernel_width, kernel_width)
        stride_h = tl.where(reached, members[i].stride_h, stride_h)
        stride_w = tl.where(reached, members[i].stride_w, stride_w)
        pad_h = tl.where(reached, members[i].pad_h, pad_h)
        pad_w = tl.where(reached, members[i].pad_w, pad_w)
        dilation_h = tl.where(reached, members[i].dilation_h, dilation_h)
        dilation_w = tl.where(reached, members[i].dilation_w, dilation_w)
        x_stride_n = tl.where(reached, members[i].x_stride_n, x_stride_n)
        x_stride_h = tl.where(reached, members[i].x_stride_h, x_stride_h)
        x_stride_w = tl.where(reached, members[i].x_stride_w, x_stride_w)
        w_stride_k = tl.where(reached, members[i].w_stride_k, w_stride_k)
        w_stride_s = tl.where(reached, members[i].w_stride_s, w_stride_s)
        residual_stride_n = tl.where(reached, members[i].residual_stride_n, residual_stride_n)
        residual_stride_h = tl.where(reached, members[i].residual_stride_h, residual_stride_h)
        residual_stride_w = tl.where(reached, members[i].residual_stride_w, residual_stride_w)
        out_stride_n = tl.where(reached, members[i].out_stride_n, out_stride_n)
        out_stride_h = tl.where(reached, members[i].out_stride_h, out_stride_h)
        out_stride_w = tl.where(reached, members[i].out_stride_w, out_stride_w)
        if ANY_RESIDUAL:
            residual_ptr = tl.where(reached, members[i].residual_ptr, residual_ptr)

    tile_m = (tile - first_tile) // tiles_n
    tile_n = (tile - first_tile) % tiles_n
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = start_tile(
        rows, cols, residual_ptr, pixels * has_residual, residual_stride_n, residual_stride_h, residual_stride_w,
        out_channels, out_height, out_width, FLAT, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    acc = implicit_gemm(
        acc, x_ptr, w_ptr, tl.minimum(rows, pixels - 1), tl.minimum(cols, out_channels - 1), height, width,
        in_channels, out_height, out_width, x_stride_n, x_stride_h, x_stride_w, w_stride_k, w_stride_s,
        kernel_height, kernel_width, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, 0,
        kernel_height * kernel_width * tl.cdiv(in_channels, BLOCK_K), False, EVEN_C, CHANNELS_OUTER, INPUT_PRECISION,
        UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    finish_tile(
        acc, rows, cols, bias_ptr, bias_channels, out_ptr, out_stride_n, out_stride_h, out_stride_w, 0, out_channels,
        pixels, out_height, out_width, relu != 0, FLAT, INPUT_PRECISION,
    )  # fmt: skip


class _Group(NamedTuple):
    convolutions: list[Convolution]
    outs: list[Tensor]
    config: Sequence[int] | None
    input_precision: str


def _checked(*values: Any) -> _Group:
    """The arguments of the operator, if the kernel can read them and they fit into one launch.

    Raises:
        InputError: names what does not fit.
    """
    xs, weights, biases, numbers, residuals, relus, outs, config, input_precision = values
    check_input_precision(_OPERATOR, input_precision)
    # numbers: stride, padding and dilation, vertical and horizontal, of each convolution
    windows = ([numbers[j : j + 2] for j in range(i, i + 6, 2)] for i in range(0, len(numbers), 6))
    operands = zip(xs, weights, biases, windows, residuals, relus, strict=True)
    convolutions = [Convolution(x, weight, bias, *window, *rest) for x, weight, bias, window, *rest in operands]
    for convolution, out in zip(convolutions, outs, strict=True):
        check_output(_OPERATOR, out, check_problem(_OPERATOR, convolution).shape, convolution.x)
    if any(x.dtype != xs[0].dtype or x.device != xs[0].device for x in xs):
        found = ", ".join(f"{x.dtype} on {x.device}" for x in xs)
        raise InputError(f"{_OPERATOR}: the convolutions of a group must share dtype and device, got {found}")
    bias_dtypes = {bias.dtype for bias in biases if bias is not None}
    if len(bias_dtypes) > 1:
        raise InputError(f"{_OPERATOR}: the biases of a group must share a dtype, got {', '.join(sorted(map(str, bias_dtypes)))}")
    return _Group(convolutions, outs, config, input_precision)


def _fake(*values: Any) -> None:
    _checked(*values)


def _run(*values: Any) -> None:
    convolutions, outs, encoded_config, precision = _checked(*values)
    first = convolutions[0].x
    windows = [convolution.window(_OPERATOR) for convolution in convolutions]
    sizes = [size_of(conv.x, out.shape, window) for conv, out, window in zip(convolutions, outs, windows, strict=True)]
    config = pick_config(first, sizes, encoded_config, precision)
    # The longest tiles start first: what is left at the end is then short.
    order = sorted(range(len(convolutions)), key=lambda i: config.steps(sizes[i]), reverse=True)
    residuals = [convolution.residual for convolution in convolutions if convolution.residual is not None]
    flat = all(has_flat_pixels(t) for t in (*outs, *residuals))
    any_bias = next((convolution.bias for convolution in convolutions if convolution.bias is not None), None)
    any_residual = residuals[0] if residuals else None
    members = []
    for i in order:
        conv, out = convolutions[i], outs[i]
        x, weight, bias, residual = conv.x, conv.weight, conv.bias, conv.residual
        fields = (
            x,
            weight,
            any_bias if bias is None else bias,
            0 if bias is None else out.shape[1],
            any_residual if residual is None else residual,
            int(residual is not None),
            int(conv.relu),
            out,
            *x.shape[2:],
            x.shape[1],
            *out.shape[2:],
            out.shape[1],
            ceil_div(out.shape[1], config.block_n),
            *itertools.chain.from_iterable(windows[i]),
            *pixel_strides(x, flat=False),
            weight.stride(0),
            weight.stride(2),
            *((0, 0, 0) if residual is None else pixel_strides(residual, flat)),
            *pixel_strides(out, flat),
        )
        members.append(GroupMember._make(fields))
    tiles = [config.tiles(sizes[i]) for i in order]
    missing = MAX_CONVOLUTIONS - len(members)
    launch(
        _OPERATOR,
        _conv2d_group_kernel,
        (sum(tiles),),
        *(sizes[i].pixels for i in order),
        *[0] * missing,
        *itertools.accumulate(tiles[:-1]),
        *[0] * missing,
        tuple(members),
        device=first.device,
        NUM_MEMBERS=len(members),
        ANY_BIAS=any_bias is not None,
        ANY_RESIDUAL=bool(residuals),
        EVEN_C=all(size.in_channels % config.block_k == 0 for size in sizes),
        FLAT=flat,
        INPUT_PRECISION=precision,
        UPCAST=needs_upcast(_conv2d_group_kernel, first),
        CHANNELS_OUTER=config.channels_outer,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


_CONV2D_GROUP = register(
    _OPERATOR,
    "(Tensor[] xs, Tensor[] weights, Tensor?[] biases, SymInt[] windows, Tensor?[] residuals, bool[] relus, Tensor(a!)[] outs, "
    "SymInt[]? config, str input_precision) -> ()",
    _run,
    _fake,
)


def conv2d_group(convolutions: Sequence[GroupedConv], config: ConvConfig | None = None, input_precision: str = "ieee") -> list[Tensor]:
    """Up to four independent convolutions in one launch.

    Args:
        convolutions: what each reads, computes and where it writes, as for `conv2d_bias_relu`, of one dtype and device; none may read what another
            writes. An `out` that is None is allocated, channels_last.
        config: how to cut all of them; predicted if None.
        input_precision: as for `conv2d_bias_relu`.

    Returns:
        The result of each, in order.

    Raises:
        InputError: no or too many convolutions, or a tensor of the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    _check_count(convolutions)
    outs = [check_problem(_OPERATOR, conv).empty() if out is None else out for conv, out in convolutions]
    columns = zip(*(conv.in_schema() for conv, _ in convolutions), strict=True)
    xs, weights, biases, *geometry, residuals, relus = map(list, columns)
    numbers = [number for pairs in zip(*geometry, strict=True) for pair in pairs for number in pair]
    encoded = None if config is None else config.encode()
    _CONV2D_GROUP(xs, weights, biases, numbers, residuals, relus, outs, encoded, input_precision)
    return outs


def conv2d_group_ref(convolutions: Sequence[GroupedConv], config: ConvConfig | None = None, input_precision: str = "ieee") -> list[Tensor]:
    """`conv2d_group` as one PyTorch convolution after the other; config and input_precision say nothing to it."""
    _check_count(convolutions)
    results = [convolve(_OPERATOR, conv) for conv, _ in convolutions]
    return [y if out is None else out.copy_(y) for (_, out), y in zip(convolutions, results, strict=True)]


def _check_count(convolutions: Sequence[GroupedConv]) -> None:
    if not 1 <= len(convolutions) <= MAX_CONVOLUTIONS:
        raise InputError(f"{_OPERATOR}: a group has 1 to {MAX_CONVOLUTIONS} convolutions, got {len(convolutions)}")
