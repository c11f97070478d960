"""Convolution + bias + residual + ReLU on NHWC activations as an implicit GEMM: the general case, any kernel size, stride, padding and dilation.

    y[n, k, p, q] = relu(bias[k] + residual[n, k, p, q] + Σ_{r, s, c} weight[k, c, r, s] · x[n, c, h, w]),
    h = p·stride − padding + r·dilation, w = q·stride − padding + s·dilation

A GEMM of N·P·Q pixels by K output channels over R·S·C, whose left operand is gathered from x while it runs: each step of the reduction is one tap
(r, s) and BLOCK_K input channels, and pixels that fall into the padding load zeros. Sums and epilogue are float32, rounded once when stored.
Lineage: the implicit GEMM of cuDNN (Chetlur et al., 2014, https://arxiv.org/abs/1410.0759).

The weight is packed once (`pack_weight`) to [K, R, S, C], channels padded with zeros to a multiple of 16: both operands then have the reduction
contiguous, the only order in which wgmma takes 32-bit and 8-bit operands, and rows start on 16-byte boundaries whatever C is.

With `split_k` > 1 the reduction is cut into parts that write float32 partial sums, and a second kernel adds them in order and does the epilogue:
the same bits on every run, which atomics would not give.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_configs import ConvConfig
from fastcnn.kernels.convolution_kernels import Destination, Problem, conv2d_kernel, sum_parts_kernel
from fastcnn.kernels.convolution_problem import (
    Pair,
    Split,
    Window,
    check_destinations,
    check_problem,
    convolve,
    make_destinations,
    make_window,
    pick_config,
    size_of,
)
from fastcnn.kernels.launching import has_flat_pixels, launch, needs_upcast, pixel_strides

_OPERATOR = "conv2d_bias_relu"
# The sum of the parts only moves memory: enough programs for every multiprocessor matter more than wide ones.
_SUM_BLOCK_M, _SUM_BLOCK_N = 16, 64


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    residual: Tensor | None,
    relu: bool,
    outs: Sequence[Tensor],
    starts: Sequence[int],
    split_k: int,
    encoded_config: Sequence[int] | None,
    input_precision: str,
) -> None:
    """Checks and launches."""
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    check_destinations(_OPERATOR, outs, starts, shape, x)
    size = size_of(x, shape, window)
    config = pick_config(_OPERATOR, x, [size], encoded_config, input_precision)
    (_, k, p, q), (_, c, h, w) = shape, x.shape
    steps = config.steps(size)
    if not 1 <= split_k <= steps:
        raise InputError(f"{_OPERATOR}: split_k must be 1 to {steps}, the steps of the reduction of weight {list(weight.shape)}, got {split_k}")
    flat = all(has_flat_pixels(t) for t in (*outs, *([] if residual is None else [residual])))
    pointwise = window.keeps_pixels() and has_flat_pixels(x)
    pixels = size.pixels
    residual_strides = (0, 0, 0) if residual is None else pixel_strides(residual, flat)
    problem = Problem(
        x, weight, bias, residual, h, w, c, p, q, k, *pixel_strides(x, pointwise), weight.stride(0), weight.stride(2), *residual_strides
    )
    constants = {
        **window.constants(),
        "CHANNEL_STEPS": triton.cdiv(c, config.block_k),
        "SPLIT_K": split_k,
        "POINTWISE": pointwise,
        "EVEN_C": c % config.block_k == 0,
        "INPUT_PRECISION": input_precision,
        "UPCAST": needs_upcast(conv2d_kernel, x),
        "CHANNELS_OUTER": config.channels_outer,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    tiles_m = triton.cdiv(pixels, config.block_m)
    if split_k == 1:
        destinations, tiles_n = make_destinations(outs, starts, k, config.block_n, flat)
        constants |= {"NUM_DESTINATIONS": len(outs), "FLAT": flat, "RELU": relu}
        launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, 1), pixels, problem, destinations, tiles_n, device=x.device, **constants)
        return
    workspace = torch.empty(split_k, pixels, k, dtype=torch.float32, device=x.device)
    tiles_n = triton.cdiv(k, config.block_n)
    partial = problem._replace(bias_ptr=None, residual_ptr=None)
    into_workspace = (Destination(workspace, 0, 0, k, 0, k, 0),)
    constants |= {"NUM_DESTINATIONS": 1, "FLAT": True, "RELU": False}
    launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, split_k), pixels, partial, into_workspace, tiles_n, device=x.device, **constants)
    destinations, tiles_n = make_destinations(outs, starts, k, _SUM_BLOCK_N, flat)
    launch(
        f"{_OPERATOR}_sum_parts",
        sum_parts_kernel,
        (triton.cdiv(pixels, _SUM_BLOCK_M) * tiles_n,),
        pixels,
        problem,
        destinations,
        workspace,
        split_k,
        tiles_n,
        device=x.device,
        NUM_DESTINATIONS=len(outs),
        FLAT=flat,
        RELU=relu,
        INPUT_PRECISION=input_precision,
        BLOCK_M=_SUM_BLOCK_M,
        BLOCK_N=_SUM_BLOCK_N,
        num_warps=4,
    )


@torch.library.custom_op("fastcnn::conv2d_bias_relu", mutates_args=())
def _conv2d_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    shape = check_problem(_OPERATOR, x, weight, bias, window, residual)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _run(x, weight, bias, window, residual, relu, [out], [0], split_k, config, input_precision)
    return out


@_conv2d_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    residual: Tensor | None,
    relu: bool,
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> Tensor:
    p, q = make_window(_OPERATOR, weight, stride, padding, dilation).out_size(x.shape[2], x.shape[3])
    return torch.empty((x.shape[0], weight.shape[0], p, q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("fastcnn::conv2d_bias_relu_out", mutates_args=("outs",))
def _conv2d_out_op(
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
    split_k: int,
    config: Sequence[int] | None,
    input_precision: str,
) -> None:
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    _run(x, weight, bias, window, residual, relu, outs, starts, split_k, config, input_precision)


@_conv2d_out_op.register_fake
def _(*arguments: object) -> None:
    return None


def conv2d_bias_relu(
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
    split_k: int = 1,
    config: ConvConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """Convolution, bias, residual add and ReLU in one launch (two with `split_k`).

    Args:
        x: [N, C, H, W], float16, bfloat16 or float32, channels_last or a channel slice of it.
        weight: [K, R, S, C_padded] from `pack_weight`, of the dtype of x.
        bias: [K], float32 or the dtype of x.
        stride, padding, dilation: one number, or (vertical, horizontal).
        residual: [N, K, P, Q], added before the ReLU; channels_last or a slice of it.
        relu: whether to clamp at 0; NaN stays NaN.
        out: [N, K, P, Q] to write into, channels_last or a slice of it; allocated channels_last if neither it nor `splits` is given.
        splits: up to four (start, stop, destination [N, stop − start, P, Q]) that take all output channels in order: merged siblings, scattered.
        split_k: parts to cut the reduction into where the pixels and channels alone do not fill the GPU (`choose_split_k`).
        config: how to cut the problem; predicted if None.
        input_precision: for float32, "ieee" multiplies in float32 and "tf32" on the tensor cores with inputs rounded to 10 bits.

    Returns:
        The result, or None with `splits`.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    window = make_window(_OPERATOR, weight, stride, padding, dilation)
    encoded = None if config is None else config.encode()
    geometry = (list(window.stride), list(window.padding), list(window.dilation))
    if out is None and splits is None:
        return _conv2d_op(x, weight, bias, *geometry, residual, relu, split_k, encoded, input_precision)
    starts, outs = _destinations_of(weight.shape[0], out, splits)
    _conv2d_out_op(x, weight, bias, *geometry, residual, relu, outs, starts, split_k, encoded, input_precision)
    return out


def conv2d_bias_relu_ref(
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
    split_k: int = 1,
    config: ConvConfig | None = None,
    input_precision: str = "ieee",
) -> Tensor | None:
    """`conv2d_bias_relu` in PyTorch's own operations, in the dtype of x, on any device; split_k, config and input_precision say nothing to it."""
    y = convolve(x, weight, bias, make_window(_OPERATOR, weight, stride, padding, dilation), residual, relu)
    if out is None and splits is None:
        return y
    starts, outs = _destinations_of(weight.shape[0], out, splits)
    for start, destination in zip(starts, outs, strict=True):
        destination.copy_(y[:, start : start + destination.shape[1]])
    return out


def _destinations_of(channels: int, out: Tensor | None, splits: Sequence[Split] | None) -> tuple[list[int], list[Tensor]]:
    """First channel and tensor of each destination: `out` as the only one, or `splits`."""
    if splits is None:
        return ([0], [out]) if out is not None else ([], [])
    stops = [stop for _, stop, _ in splits]
    if out is not None or not splits or [start for start, _, _ in splits] != [0, *stops[:-1]] or stops[-1] != channels:
        bounds = [(start, stop) for start, stop, _ in splits]
        raise InputError(f"{_OPERATOR}: splits must take each of the {channels} output channels once and in order, without out; got {bounds}")
    return [start for start, _, _ in splits], [destination for _, _, destination in splits]
