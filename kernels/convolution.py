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
from typing import NamedTuple

import torch
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels.convolution_configs import ConvConfig, ConvSize
from fastcnn.kernels.convolution_kernels import Destination, Problem, conv2d_kernel, sum_parts_kernel
from fastcnn.kernels.convolution_problem import (
    SCATTERED,
    SCHEMA,
    Convolution,
    Split,
    Window,
    check_input_precision,
    check_problem,
    compute,
    compute_ref,
    make_destinations,
    pick_config,
    size_of,
)
from fastcnn.kernels.launching import ceil_div, has_flat_pixels, launch, needs_upcast, pixel_strides
from fastcnn.kernels.operators import Operator, Result

_OPERATOR = "conv2d_bias_relu"
# The sum of the parts only moves memory: enough programs for every multiprocessor matter more than wide ones.
_SUM_BLOCK_M, _SUM_BLOCK_N = 16, 64


class _Arguments(NamedTuple):
    convolution: Convolution
    split_k: int
    config: Sequence[int] | None
    input_precision: str

    def size_and_config(self, shape: Sequence[int], window: Window) -> tuple[ConvSize, ConvConfig]:
        """Of the GEMM, and how it is cut."""
        size = size_of(self.convolution.x, shape, window)
        return size, pick_config(self.convolution.x, [size], self.config, self.input_precision)


def _check(arguments: _Arguments) -> Result:
    convolution, split_k = arguments.convolution, arguments.split_k
    result = check_problem(_OPERATOR, convolution)
    check_input_precision(_OPERATOR, arguments.input_precision)
    if split_k != 1:
        size, config = arguments.size_and_config(result.shape, convolution.window(_OPERATOR))
        steps = config.steps(size)
        if not 1 <= split_k <= steps:
            raise InputError(
                f"{_OPERATOR}: split_k must be 1 to {steps}, the steps of the reduction of weight {list(convolution.weight.shape)}, got {split_k}"
            )
    return result


def _run(arguments: _Arguments, outs: Sequence[Tensor], starts: Sequence[int]) -> None:
    convolution, split_k = arguments.convolution, arguments.split_k
    x, weight, residual, window = convolution.x, convolution.weight, convolution.residual, convolution.window(_OPERATOR)
    shape = [x.shape[0], weight.shape[0], *outs[0].shape[2:]]
    size, config = arguments.size_and_config(shape, window)
    (_, k, p, q), (_, c, h, w) = shape, x.shape
    flat = all(has_flat_pixels(t) for t in (*outs, *([] if residual is None else [residual])))
    pointwise = window.keeps_pixels() and has_flat_pixels(x)
    pixels = size.pixels
    weight_strides = weight.stride(0), weight.stride(2)
    residual_strides = (0, 0, 0) if residual is None else pixel_strides(residual, flat)
    strides = (*pixel_strides(x, pointwise), *weight_strides, *residual_strides)
    problem = Problem(x, weight, convolution.bias, residual, h, w, c, p, q, k, *strides)
    constants = {
        **window.constants(),
        "CHANNEL_STEPS": ceil_div(c, config.block_k),
        "SPLIT_K": split_k,
        "POINTWISE": pointwise,
        "EVEN_C": c % config.block_k == 0,
        "INPUT_PRECISION": arguments.input_precision,
        "UPCAST": needs_upcast(conv2d_kernel, x),
        "CHANNELS_OUTER": config.channels_outer,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
    tiles_m = ceil_div(pixels, config.block_m)
    if split_k == 1:
        destinations, tiles_n = make_destinations(outs, starts, k, config.block_n, flat)
        constants |= {"NUM_DESTINATIONS": len(outs), "FLAT": flat, "RELU": convolution.relu}
        launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, 1), pixels, problem, destinations, tiles_n, device=x.device, **constants)
        return
    workspace = torch.empty(split_k, pixels, k, dtype=torch.float32, device=x.device)
    tiles_n = ceil_div(k, config.block_n)
    partial = problem._replace(bias_ptr=None, residual_ptr=None)
    into_workspace = (Destination(workspace, 0, 0, k, 0, k, 0),)
    constants |= {"NUM_DESTINATIONS": 1, "FLAT": True, "RELU": False}
    launch(_OPERATOR, conv2d_kernel, (tiles_m * tiles_n, split_k), pixels, partial, into_workspace, tiles_n, device=x.device, **constants)
    destinations, tiles_n = make_destinations(outs, starts, k, _SUM_BLOCK_N, flat)
    launch(
        f"{_OPERATOR}_sum_parts",
        sum_parts_kernel,
        (ceil_div(pixels, _SUM_BLOCK_M) * tiles_n,),
        pixels,
        problem,
        destinations,
        workspace,
        split_k,
        tiles_n,
        device=x.device,
        NUM_DESTINATIONS=len(outs),
        FLAT=flat,
        RELU=convolution.relu,
        INPUT_PRECISION=arguments.input_precision,
        BLOCK_M=_SUM_BLOCK_M,
        BLOCK_N=_SUM_BLOCK_N,
        num_warps=4,
    )


_CONV2D = Operator(
    _OPERATOR,
    f"{SCHEMA}, {{out}}, SymInt split_k, SymInt[]? config, str input_precision",
    lambda *values: _Arguments(Convolution(*values[:8]), *values[8:]),
    _check,
    _run,
    SCATTERED,
)


def conv2d_bias_relu(
    convolution: Convolution,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    config: ConvConfig | None = None,
    split_k: int = 1,
    input_precision: str = "ieee",
) -> Tensor | None:
    """Convolution, bias, residual add and ReLU in one launch (two with `split_k`).

    Args:
        convolution: what to compute.
        out: [N, K, P, Q] to write into, channels_last or a slice of it; allocated channels_last if neither it nor `splits` is given.
        splits: up to four (start, stop, destination [N, stop − start, P, Q]) that take all output channels in order: merged
            siblings, scattered.
        config: how to cut the problem; predicted if None.
        split_k: parts to cut the reduction into where the pixels and channels alone do not fill the GPU (`choose_split_k`).
        input_precision: for float32, "ieee" multiplies in float32 and "tf32" on the tensor cores with inputs rounded to 10 bits.

    Returns:
        The result, or None with `splits`.

    Raises:
        InputError: a tensor has the wrong shape, dtype, device or memory format.
        BackendError: the tensors are not on a CUDA device and Triton does not interpret.
    """
    encoded = None if config is None else config.encode()
    return compute(_CONV2D, (*convolution.in_schema(), split_k, encoded, input_precision), out, splits)


def conv2d_bias_relu_ref(
    convolution: Convolution,
    out: Tensor | None = None,
    splits: Sequence[Split] | None = None,
    config: ConvConfig | None = None,
    split_k: int = 1,
    input_precision: str = "ieee",
) -> Tensor | None:
    """`conv2d_bias_relu` in PyTorch's own operations, in the dtype of x, on any device; config, split_k and input_precision say nothing to it."""
    return compute_ref(_OPERATOR, convolution, out, splits)
