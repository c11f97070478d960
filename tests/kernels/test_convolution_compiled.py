"""What the compiler makes of the convolution kernels: every shipped configuration, on every architecture it is shipped for."""

from __future__ import annotations

import pytest
import torch

from fastcnn.kernels.convolution_configs import configs_for

from .compiling import SMS, CallRequest, compile_kernels

TENSOR_CORES = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}  # mma.sync, mma.sync, wgmma, tcgen05
PRECISIONS = {"half": (torch.float16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
SETUP = """
from fastcnn.kernels import Convolution, GroupedConv, conv2d_bias_relu, conv2d_group, pack_weight
from fastcnn.kernels.convolution_configs import ConvConfig

def conv(n, c, k, kernel, dtype, stride=1, padding=0, residual=None):
    weight = pack_weight(torch.empty(k, c, *kernel, dtype=dtype))
    return Convolution(nhwc(n, c, 17, 17, dtype), weight, torch.empty(k), stride, padding, residual=residual)
"""
# 80 channels end in half a step, 112 in half a tile.
LAYER = (
    "conv2d_bias_relu(conv(8, 80, 176, (3, 3), {dtype}, 1, 1, nhwc(8, 176, 17, 17, {dtype})), config={config}, "
    "splits=[(0, 64, nhwc(8, 64, 17, 17, {dtype})), (64, 176, nhwc(8, 112, 17, 17, {dtype}))], input_precision='{precision}')"
)
GROUP = (
    "conv2d_group([GroupedConv(conv(1, 48, 64, (5, 5), {dtype}, padding=2)), GroupedConv(conv(1, 96, 96, (3, 3), {dtype}, 2, "
    "residual=nhwc(1, 96, 8, 8, {dtype}))), GroupedConv(conv(1, 80, 192, (1, 1), {dtype}))], {config}, '{precision}')"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("sm", SMS)
def test_every_configuration_of_one_convolution(sm: int, name: str) -> None:
    dtype, precision = PRECISIONS[name]
    configs = configs_for(dtype, precision, sm)
    binaries = compile_kernels([CallRequest(LAYER.format(dtype=dtype, config=config, precision=precision), SETUP) for config in configs], (sm,))
    assert len(binaries) == len(configs) > 0
    for config, binary in zip(configs, binaries, strict=True):
        binary.check_resources()
        assert binary.mma == (() if name == "ieee" else (TENSOR_CORES[sm],)), f"{config}: {binary}"
        assert binary.widest_access == 128, f"{config}: loads and stores are narrower than 16 bytes: {binary}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("sm", SMS)
def test_configurations_of_a_group(sm: int, name: str) -> None:
    dtype, precision = PRECISIONS[name]
    # The tile is that of one convolution, compiled above in every configuration: the widest, with the fewest registers to spare, stands for all.
    configs = configs_for(dtype, precision, sm)[: None if sm == 90 else 1]
    binaries = compile_kernels([CallRequest(GROUP.format(dtype=dtype, config=config, precision=precision), SETUP) for config in configs], (sm,))
    assert len(binaries) == len(configs)
    for config, binary in zip(configs, binaries, strict=True):
        binary.check_resources()
        assert binary.mma == (() if name == "ieee" else (TENSOR_CORES[sm],)), f"{config}: {binary}"
        assert binary.widest_access == 128, f"{config}: loads and stores are narrower than 16 bytes: {binary}"


@pytest.mark.slow
def test_the_other_roads_through_the_kernel() -> None:
    calls = {
        "bfloat16, split reduction": "conv2d_bias_relu(conv(1, 192, 192, (1, 7), torch.bfloat16, padding=(0, 3)), split_k=4)",
        "1×1": "conv2d_bias_relu(conv(8, 288, 64, (1, 1), torch.float16))",
        "primes": "conv2d_bias_relu(conv(8, 17, 13, (3, 3), torch.float16))",
        "channels outside": "conv2d_bias_relu(conv(8, 96, 96, (3, 3), torch.float16), config=ConvConfig(128, 128, 32, 8, 3, True))",
    }
    binaries = compile_kernels([CallRequest(call, SETUP) for call in calls.values()])
    assert len(binaries) == (len(calls) + 1) * len(SMS)
    for binary in binaries:
        binary.check_resources()
        assert binary.mma == (() if binary.kernel == "sum_parts_kernel" else (TENSOR_CORES[binary.sm],)), binary
