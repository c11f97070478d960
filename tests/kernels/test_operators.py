"""What registering an operator promises: the schemas that exported programs hold, and traces that leave the batch size open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcnn.kernels import pack_stem_weight, pack_weight

from .tensors import activation

CONVOLUTION = "Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, Tensor? residual, bool relu"
STEM = "Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, Tensor? scale, Tensor? shift, bool relu"
GROUP = "Tensor[] xs, Tensor[] weights, Tensor?[] biases, SymInt[] windows, Tensor?[] residuals, bool[] relus"
POOL = (
    "str reduction, Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, bool count_include_pad, "
    "Tensor? bias, bool relu"
)
AFFINE = "Tensor x, Tensor scale, Tensor shift, bool relu"
CONCAT = "Tensor[] branches, Tensor?[] biases, bool relu"
CUT = "SymInt[]? config, str input_precision"
OUTS = "Tensor(a!)[] outs, SymInt[] starts"
SCHEMAS = {
    "concat_relu": f"({CONCAT}) -> Tensor",
    "concat_relu_out": f"({CONCAT}, Tensor(a!) out) -> ()",
    "conv2d_bias_relu": f"({CONVOLUTION}, SymInt split_k, {CUT}) -> Tensor",
    "conv2d_bias_relu_out": f"({CONVOLUTION}, {OUTS}, SymInt split_k, {CUT}) -> ()",
    "conv2d_group": f"({GROUP}, Tensor(a!)[] outs, {CUT}) -> ()",
    "conv2d_tma": f"({CONVOLUTION}, {CUT}) -> Tensor",
    "conv2d_tma_out": f"({CONVOLUTION}, {OUTS}, {CUT}) -> ()",
    "global_avg_pool2d": "(Tensor x) -> Tensor",
    "global_avg_pool2d_out": "(Tensor x, Tensor(a!) out) -> ()",
    "pool2d": f"({POOL}) -> Tensor",
    "pool2d_out": f"({POOL}, Tensor(a!) out) -> ()",
    "scale_bias_relu": f"({AFFINE}) -> Tensor",
    "scale_bias_relu_out": f"({AFFINE}, Tensor(a!) out) -> ()",
    "stem_conv2d": f"({STEM}, str input_precision) -> Tensor",
    "stem_conv2d_out": f"({STEM}, Tensor(a!) out, str input_precision) -> ()",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_stays(name: str) -> None:
    assert str(getattr(torch.ops.fastcnn, name).default._schema) == f"fastcnn::{name}{SCHEMAS[name]}"


OPS = torch.ops.fastcnn
WEIGHT, STEM_WEIGHT = pack_weight(torch.zeros(16, 16, 3, 3)), pack_stem_weight(torch.zeros(8, 3, 3, 3))
VECTOR, ONES = torch.zeros(16), [1, 1]
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d_bias_relu": lambda x: OPS.conv2d_bias_relu(x, WEIGHT, VECTOR, ONES, ONES, ONES, x, True, 1, None, "ieee"),
    "split reduction": lambda x: OPS.conv2d_bias_relu(x, WEIGHT, VECTOR, ONES, ONES, ONES, None, True, 4, [16, 16, 16, 4, 2, 0], "ieee"),
    "conv2d_tma": lambda x: OPS.conv2d_tma(x, WEIGHT, VECTOR, ONES, ONES, ONES, None, True, None, "tf32"),
    "stem_conv2d": lambda x: OPS.stem_conv2d(x[:, :3], STEM_WEIGHT, None, [2, 2], ONES, None, None, True, "ieee"),
    "pool2d": lambda x: OPS.pool2d("max", x, [3, 3], [2, 2], ONES, ONES, False, False, None, False),
    "scale_bias_relu": lambda x: OPS.scale_bias_relu(x, VECTOR, VECTOR, True),
    "concat_relu": lambda x: OPS.concat_relu([x, x], [VECTOR, None], True),
    "global_avg_pool2d": lambda x: OPS.global_avg_pool2d(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_trace_leaves_the_batch_size_open(name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return CALLS[name](x)

    program = torch.export.export(Model(), (activation((2, 16, 8, 8)),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    (bounds,) = program.range_constraints.values()
    assert bounds.lower == 0
    assert bounds.upper > 2**62
