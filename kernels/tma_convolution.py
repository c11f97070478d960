"""Convolution + bias + residual + ReLU of stride 1 through the tensor memory accelerator (TMA) of Hopper and Blackwell.

    y[n, k, p, q] = relu(bias[k] + residual[n, k, p, q] + Σ_{r, s, c} weight[k, c, r, s] · x[n, c, h, w]),
    h = p − padding + r·dilation, w = q − padding + s·dilation

The same implicit GEMM as convolution.py, without its gather: a tile is a box of output pixels, images × rows × columns, and what it reads for one tap
and BLOCK_K channels is a box of the same size, shifted by the tap, which one TMA instruction brings to shared memory. What lies outside of the image
arrives as zeros, so the padding needs neither masks nor a halo in memory: activations stay plain NHWC, and slices of it. A 1×1 convolution over
pixels that lie in one row takes them as one row.

Lineage: the implicit GEMM of cuDNN (Chetlur et al., 2014, https://arxiv.org/abs/1410.0759) over the tiled mode of the TMA (NVIDIA H100 Tensor Core
GPU Architecture, 2022).

Configurations with specialised warps make their descriptors on the device, in memory that Triton asks for at every launch; the others get them from
the host as kernel arguments, which costs a small launch nothing. Neither leaves anything that a CUDA graph could outlive.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution import conv2d_bias_relu_ref
from fastcnn.kernels.convolution_problem import (
    Pair,
    Split,
    Window,
    check_destinations,
    check_input_precision,
    check_problem,
    make_destinations,
    make_pair,
    make_window,
)
from fastcnn.kernels.launching import device_limits, has_flat_pixels, is_interpreted, launch, needs_upcast, pixel_stride, pixel_strides
from fastcnn.kernels.tma_convolution_configs import TmaConfig, TmaSize, choose_tma_config, tma_configs_for
from fastcnn.kernels.tma_convolution_kernels import conv2d_tma_kernel

_OPERATOR = "conv2d_tma"
# Addresses and strides that the TMA takes are multiples of this many bytes.
_TMA_ALIGNMENT = 16


class _Pixels(NamedTuple):
    """The input as it is tiled: [images, height, width, channels], its strides over the first three, and the output pixels of an image."""

    images: int
    height: int
    width: int
    strides: tuple[int, int, int]
    rows: int
    columns: int


def supports_tma(x: Tensor, weight: Tensor, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, input_precision: str = "ieee") -> str | None:
    """Why `conv2d_tma` cannot compute this convolution, in a few words; None if it can.

    Says nothing about requests that no convolution could serve, such as shapes that do not fit together.

    Args:
        x, weight, stride, padding, dilation, input_precision: as for `conv2d_tma`; padding and dilation may be anything.
    """
    if make_pair(stride) != (1, 1):
        return f"stride {make_pair(stride)}: only stride 1 reads boxes of neighbouring pixels"
    if x.dtype == torch.float32 and input_precision != "tf32":
        return "float32 in full precision does not run on tensor cores; input_precision='tf32' does"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"dtype {x.dtype}: supported are torch.float16, torch.bfloat16 and torch.float32 as tf32"
    if x.device.type != "cuda" and not is_interpreted(conv2d_tma_kernel):
        return f"tensors on {x.device}: compiled kernels run on CUDA tensors"
    capability, _ = device_limits(x.device)
    if not tma_configs_for(x.dtype, capability, input_precision):
        return f"compute capability {capability // 10}.{capability % 10}: needs 9.0 (Hopper) or 10.x (Blackwell)"
    channels = x.shape[1]
    if channels * x.element_size() < _TMA_ALIGNMENT:
        return f"{channels} input channels: fewer than {_TMA_ALIGNMENT // x.element_size()} fill no {_TMA_ALIGNMENT} bytes"
    for name, tensor, axes in (("x", x, (0, 2, 3)), ("weight", weight, ())):
        if tensor.numel() and tensor.data_ptr() % _TMA_ALIGNMENT:
            return f"{name} starts at an address that is no multiple of {_TMA_ALIGNMENT} bytes"
        strides = [tensor.stride(axis) * tensor.element_size() for axis in axes if tensor.shape[axis] > 1]
        if any(bytes_ <= 0 or bytes_ % _TMA_ALIGNMENT for bytes_ in strides):
            return f"{name} has strides {tensor.stride()}, over pixels no multiples of {_TMA_ALIGNMENT} bytes"
    return None


def _require(x: Tensor, weight: Tensor, window: Window, input_precision: str) -> None:
    """Refuses what `supports_tma` has a reason against.

    Raises:
        InputError: gives the reason.
    """
    check_input_precision(_OPERATOR, input_precision)
    reason = supports_tma(x, weight, window.stride, window.padding, window.dilation, input_precision)
    if reason is not None:
        raise InputError(f"{_OPERATOR}: x of shape {list(x.shape)} and weight {list(weight.shape)}: {reason}; use conv2d_bias_relu")


def _workspace(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors that a kernel writes before it reads them, from PyTorch's allocator and on its current stream.

    It is free again when the launch returns: what PyTorch gives it to next runs later on the same stream. During the capture of a CUDA graph it
    comes from the graph's own pool, which lives as long as the graph, and each replay writes the descriptors anew.
    """
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _launch_with_workspace(*arguments: Any, **options: Any) -> None:
    """`launch`, with PyTorch's allocator for what the kernel asks Triton for."""

    def run() -> None:
        triton.set_allocator(_workspace)
        launch(*arguments, **options)

    # Triton keeps the allocator in a context variable: in a copy of the context it is set for this launch alone, whatever the caller had set.
    contextvars.copy_context().run(run)


def _pixels_of(x: Tensor, shape: Sequence[int], is_flat: bool) -> _Pixels:
    """The input x [N, C, H, W] as the kernel tiles it into the output `shape` [N, K, P, Q]."""
    n, c, h, w = x.shape
    _, _, p, q = shape
    if is_flat:
        length = n * h * w
        step = _aligned(x, pixel_stride(x))
        return _Pixels(1, 1, length, (length * step, length * step, step), 1, length)
    # The strides of dimensions of size 1 can be anything in PyTorch. They are never followed, but the TMA asks that they be aligned.
    stride_w = x.stride(3) if w > 1 else _aligned(x, c)
    stride_h = x.stride(2) if h > 1 else w * stride_w
    stride_n = x.stride(0) if n > 1 else h * stride_h
    return _Pixels(n, h, w, (stride_n, stride_h, stride_w), p, q)


def _aligned(x: Tensor, elements: int) -> int:
    """`elements` rounded up to whole 16 bytes."""
    multiple = _TMA_ALIGNMENT // x.element_size()
    return -(-elements // multiple) * multiple


def _operands(x: Tensor, weight: Tensor, pixels: _Pixels, box: Sequence[int], config: TmaConfig) -> tuple[Any, Any, Any]:
    """x, weight and the weight for the second accumulator, as descriptors where the kernel does not make them."""
    if config.warp_specialize:
        return x, weight, None
    k, depth = weight.shape[0], math.prod(weight.shape[1:])
    x_descriptor = TensorDescriptor(x, [pixels.images, pixels.height, pixels.width, x.shape[1]], [*pixels.strides, 1], [*box, config.block_k])
    tiles = [TensorDescriptor(weight, [k, depth], [depth, 1], [n, config.block_k]) if n else None for n in (config.block_n, config.extra_n)]
    return x_descriptor, *tiles


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    residual: Tensor | None,
    relu: bool,
    outs: Sequence[Tensor],
    starts: Sequence[int],
    encoded_config: Sequence[int] | None,
    input_precision: str,
) -> None:
    """Checks and launches."""
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    check_destinations(_OPERATOR, outs, starts, shape, x)
    _require(x, weight, window, input_precision)
    (n, k, p, q), c = shape, x.shape[1]
    if n == 0:
        return
    r, s = window.size
    size = TmaSize(n, p, q, k, c, r * s, window.keeps_pixels() and has_flat_pixels(x))
    capability, multiprocessors = device_limits(x.device)
    flat_out = all(has_flat_pixels(t) for t in (*outs, *([] if residual is None else [residual])))
    if encoded_config is None:
        config = choose_tma_config(size, x.dtype, capability, input_precision, multiprocessors, residual is not None or not flat_out)
    else:
        config = TmaConfig.decode(encoded_config)
    if not config.suits(size):
        raise InputError(
            f"{_OPERATOR}: specialised warps need tiles of pixels in one row of one image, not {config.box(size)}; choose another config"
        )
    pixels = _pixels_of(x, shape, size.is_flat)
    box = config.box(size)
    destinations, tiles_n = make_destinations(outs, starts, k, config.channels, flat_out)
    tiles = config.pixel_tiles(size) * tiles_n
    _launch_with_workspace(
        _OPERATOR,
        conv2d_tma_kernel,
        (min(tiles, multiprocessors) if config.warp_specialize else tiles,),
        *_operands(x, weight, pixels, box, config),
        bias,
        residual,
        *((0, 0, 0) if residual is None else pixel_strides(residual, flat_out)),
        destinations,
        pixels.images,
        pixels.height,
        pixels.width,
        c,
        k,
        pixels.rows,
        pixels.columns,
        *pixels.strides,
        weight.shape[3],
        r,
        s,
        *window.padding,
        *window.dilation,
        r * s * triton.cdiv(c, config.block_k),
        tiles,
        triton.cdiv(pixels.rows, box.rows),
        triton.cdiv(pixels.columns, box.columns),
        tiles_n,
        p,
        q,
        device=x.device,
        NUM_DESTINATIONS=len(outs),
        HOST_DESCRIPTORS=not config.warp_specialize,
        FLAT_OUT=flat_out,
        RELU=relu,
        INPUT_PRECISION=input_precision,
        UPCAST=needs_upcast(conv2d_tma_kernel, x),
        BOX_N=box.images,
        BOX_H=box.rows,
        BOX_W=box.columns,
        BLOCK_N=config.block_n,
        EXTRA_N=config.extra_n,
        BLOCK_K=config.block_k,
        NUM_STAGES=config.num_stages,
        WARP_SPECIALIZE=config.warp_specialize,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@torch.library.custom_op("fastcnn::conv2d_tma", mutates_args=())
def _conv2d_tma_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _run(x, weight, bias, window, residual, relu, [out], [0], config, input_precision)
    return out


@_conv2d_tma_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    p, q = make_window(_OPERATOR, weight, stride, padding, dilation).out_size(x.shape[2], x.shape[3])
    return torch.empty((x.shape[0], weight.shape[0], p, q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("fastcnn::conv2d_tma_out", mutates_args=("outs",))
def _conv2d_tma_out_op(
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
    config: Sequence[int] | None,
    input_precision: str,
) -> None:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    _run(x, weight, bias, window, residual, relu, outs, starts, config, input_precision)


@_conv2d_tma_out_op.register_fake
def _(*arguments: object) -> None:
    return None


def conv2d_tma(
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
    config: TmaConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """Convolution of stride 1, bias, residual add and ReLU in one launch, its operands brought by the TMA; ask `supports_tma` first.

    Args:
        x: [N, C, H, W], float16, bfloat16, or float32 with `input_precision="tf32"`; channels_last or a channel slice of it. Its address and its
            strides over pixels are multiples of 16 bytes.
        weight: [K, R, S, C_padded] from `pack_weight`, of the dtype of x, its numbers finite: where C is no multiple of the block_k of the
            configuration, weights are also multiplied by zeros.
        bias: [K], float32 or the dtype of x.
        stride: 1; there to be refused.
        padding, dilation: one number, or (vertical, horizontal).
        residual: [N, K, P, Q], added before the ReLU; channels_last or a slice of it.
        relu: whether to clamp at 0; NaN stays NaN.
        out: [N, K, P, Q] to write into, channels_last or a slice of it, of any alignment; allocated if neither it nor `splits` is given.
        splits: up to four (start, stop, destination [N, stop − start, P, Q]) that take all output channels in order: merged siblings, scattered.
        config: how to cut the problem; predicted if None.
        input_precision: for float32; the tensor cores ignore all but 10 bits of the fraction.

    Returns:
        The result, or None with `splits`.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format, `supports_tma` gives a reason, or `config` does
            not suit the size (`TmaConfig.suits`).
    """
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    encoded = None if config is None else config.encode()
    geometry = (list(window.stride), list(window.padding), list(window.dilation))
    if out is None and splits is None:
        return _conv2d_tma_op(x, weight, bias, *geometry, residual, relu, encoded, input_precision)
    starts, outs = ([0], [out]) if splits is None else ([start for start, *_ in splits], [destination for *_, destination in splits])
    if splits is not None and (out is not None or [stop for _, stop, _ in splits] != [*starts[1:], weight.shape[0]]):
        bounds = [(start, stop) for start, stop, _ in splits]
        raise InputError(f"{_OPERATOR}: splits must take each of the {weight.shape[0]} output channels once and in order, without out; got {bounds}")
    _conv2d_tma_out_op(x, weight, bias, *geometry, residual, relu, outs, starts, encoded, input_precision)
    return out


def conv2d_tma_ref(
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
    config: TmaConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """`conv2d_tma` in PyTorch's own operations, in the dtype of x, on any device; config and input_precision say nothing to it."""
    return conv2d_bias_relu_ref(x, weight, bias, stride, padding, dilation, residual, relu, out, splits)
