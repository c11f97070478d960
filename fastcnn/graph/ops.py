"""Fused steps that ATen has no operation for, as plain PyTorch functions: the meaning of a step, which engines lower to kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def fused_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """relu(conv2d(input) + bias + residual), residual and ReLU optional.

    input [N, C, H, W], weight [K, C/groups, R, S], bias [K], residual and result [N, K, H', W']; all of one floating-point dtype.
    """
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        output = output + residual
    return F.relu(output) if relu else output
