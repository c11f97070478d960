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
from fastcnn.kernels.convolution_problem import (
    SCATTERED,
    SCHEMA,
    Convolution,
    Split,
    check_input_precision,
    check_problem,
    compute,
    compute_ref,
    make_destinations,
    make_pair,
)
from fastcnn.kernels.launching import (
    ACTIVATION_DTYPES,
    ceil_div,
    device_limits,
    has_flat_pixels,
    is_interpreted,
    launch,
    needs_upcast,
    pixel_stride,
    pixel_strides,
)
from fastcnn.kernels.operators import Operator, Result
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


def supports_tma(convolution: Convolution, input_precision: str = "ieee") -> str | None:
    """Why `conv2d_tma` cannot compute this convolution, in a few words; None if it can.

    Says nothing about requests that no convolution could serve, such as shapes that do not fit together.
    """
    return _why_not(convolution, input_precision) or _why_not_here(convolution, input_precision)


def _why_not(convolution: Convolution, input_precision: str) -> str | None:
    """A reason that fake tensors have too."""
    x, stride = convolution.x, make_pair(convolution.stride)
    if stride != (1, 1):
        return f"stride {stride}: only stride 1 reads boxes of neighbouring pixels"
    if x.dtype == torch.float32 and input_precision != "tf32":
        return "float32 in full precision does not run on tensor cores; input_precision='tf32' does"
    if x.dtype not in ACTIVATION_DTYPES:
        return f"dtype {x.dtype}: supported are torch.float16, torch.bfloat16 and torch.float32 as tf32"
    channels = x.shape[1]
    if channels * x.element_size() < _TMA_ALIGNMENT:
        return f"{channels} input channels: fewer than {_TMA_ALIGNMENT // x.element_size()} fill no {_TMA_ALIGNMENT} bytes"
    strides = [x.stride(axis) * x.element_size() for axis in (0, 2, 3) if x.shape[axis] > 1]
    if any(bytes_ <= 0 or bytes_ % _TMA_ALIGNMENT for bytes_ in strides):
        return f"x has strides {x.stride()}, over pixels no multiples of {_TMA_ALIGNMENT} bytes"
    return None


def _why_not_here(convolution: Convolution, input_precision: str) -> str | None:
    """A reason that the device or an address gives."""
    x = convolution.x
    if x.device.type != "cuda" and not is_interpreted(conv2d_tma_kernel):
        return f"tensors on {x.device}: compiled kernels run on CUDA tensors"
    capability, _ = device_limits(x.device)
    if not tma_configs_for(x.dtype, capability, input_precision):
        return f"compute capability {capability // 10}.{capability % 10}: needs 9.0 (Hopper) or 10.x (Blackwell)"
    for name, tensor in (("x", x), ("weight", convolution.weight)):
        if tensor.numel() and tensor.data_ptr() % _TMA_ALIGNMENT:
            return f"{name} starts at an address that is no multiple of {_TMA_ALIGNMENT} bytes"
    return None


def _require(reason: str | None, convolution: Convolution) -> None:
    """Refuses what there is a reason against.

    Raises:
        InputError: gives the reason.
    """
    if reason is not None:
        x, weight = convolution.x, convolution.weight
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


def _pixels_of(x: Tensor, p: int, q: int, is_flat: bool) -> _Pixels:
    """The input x [N, C, H, W] as the kernel tiles it into the output [N, K, P, Q]."""
    n, c, h, w = x.shape
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


class _Arguments(NamedTuple):
    convolution: Convolution
    config: Sequence[int] | None
    input_precision: str


def _check(arguments: _Arguments) -> Result:
    convolution, _, input_precision = arguments
    result = check_problem(_OPERATOR, convolution)
    check_input_precision(_OPERATOR, input_precision)
    _require(_why_not(convolution, input_precision), convolution)
    return result


def _run(arguments: _Arguments, outs: Sequence[Tensor], starts: Sequence[int]) -> None:
    convolution, encoded_config, input_precision = arguments
    x, weight, residual, window = convolution.x, convolution.weight, convolution.residual, convolution.window(_OPERATOR)
    _require(_why_not_here(convolution, input_precision), convolution)
    n, c, k = x.shape[0], x.shape[1], weight.shape[0]
    p, q = outs[0].shape[2:]
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
    pixels = _pixels_of(x, p, q, size.is_flat)
    box = config.box(size)
    destinations, tiles_n = make_destinations(outs, starts, k, config.channels, flat_out)
    tiles = config.pixel_tiles(size) * tiles_n
    _launch_with_workspace(
        _OPERATOR,
        conv2d_tma_kernel,
        (min(tiles, multiprocessors) if config.warp_specialize else tiles,),
        *_operands(x, weight, pixels, box, config),
        convolution.bias,
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
        r * s * ceil_div(c, config.block_k),
        tiles,
        ceil_div(pixels.rows, box.rows),
        ceil_div(pixels.columns, box.columns),
        tiles_n,
        p,
        q,
        device=x.device,
        NUM_DESTINATIONS=len(outs),
        HOST_DESCRIPTORS=not config.warp_specialize,
        FLAT_OUT=flat_out,
        RELU=convolution.relu,
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


_CONV2D_TMA = Operator(
    _OPERATOR,
    f"{SCHEMA}, {{out}}, SymInt[]? config, str input_precision",
    lambda *values: _Arguments(Convolution(*values[:8]), *values[8:]),
    _check,
    _run,
    SCATTERED,
)


def conv2d_tma(
    convolution: Convolution,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    config: TmaConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """Convolution of stride 1, bias, residual add and ReLU in one launch, its operands brought by the TMA; ask `supports_tma` first.

    Args:
        convolution: what to compute. The address of x and its strides over pixels are multiples of 16 bytes; float32 needs
            `input_precision="tf32"`. The weight's numbers are finite: where C is no multiple of the block_k of the
            configuration, weights are also multiplied by zeros.
        out, splits: as for `conv2d_bias_relu`, of any alignment.
        config: how to cut the problem; predicted if None.
        input_precision: for float32; the tensor cores ignore all but 10 bits of the fraction.

    Returns:
        The result, or None with `splits`.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format, `supports_tma` gives a reason, or `config` does
            not suit the size (`TmaConfig.suits`).
    """
    encoded = None if config is None else config.encode()
    return compute(_CONV2D_TMA, (*convolution.in_schema(), encoded, input_precision), out, splits)


def conv2d_tma_ref(
    convolution: Convolution,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    config: TmaConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """`conv2d_tma` in PyTorch's own operations, in the dtype of x, on any device; config and input_precision say nothing to it."""
    return compute_ref(_OPERATOR, convolution, out, splits)
