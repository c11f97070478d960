"""What the compiler makes of the convolution through the TMA: every shipped configuration, on the architectures that it is shipped for."""

from __future__ import annotations

import re

import pytest
import torch

from fastcnn.kernels.tma_convolution_configs import TmaConfig, TmaSize, leaves_registers, tma_configs_for

from .compiling import Binary, CallRequest, compile_kernels

TENSOR_CORES = {90: "HGMMA", 100: "UTCHMMA"}  # wgmma, tcgen05
PRECISIONS = {"half": (torch.float16, "ieee"), "tf32": (torch.float32, "tf32")}
SETUP = """
from fastcnn.kernels import Convolution, TmaConfig, conv2d_tma, pack_weight

def conv(n, c, k, kernel, dtype, padding=0, width=17, residual=None):
    weight = pack_weight(torch.empty(k, c, *kernel, dtype=dtype))
    return Convolution(nhwc(n, c, 17, width, dtype), weight, torch.empty(k), 1, padding, residual=residual)
"""
# 80 channels end in a part of a step, 112 in a part of a tile.
PLAIN = (
    "conv2d_tma(conv(8, 80, 176, (3, 3), {dtype}, 1, {width}), config={config}, input_precision='{precision}', "
    "splits=[(0, 64, nhwc(8, 64, 17, {width}, {dtype})), (64, 176, nhwc(8, 112, 17, {width}, {dtype}))])"
)
# The second destination has columns beside those it is written to.
FULL = (
    "conv2d_tma(conv(8, 80, 176, (3, 3), {dtype}, 1, {width}, nhwc(8, 176, 17, {width}, {dtype})), config={config}, "
    "input_precision='{precision}', "
    "splits=[(0, 64, nhwc(8, 64, 17, {width}, {dtype})), (64, 176, nhwc(8, 112, 17, {width} + 1, {dtype})[..., :{width}])])"
)
# HGMMA.64x128x16.F32 R24, gdesc[UR8], R24: the left operand is in shared memory; in registers it would be one more register before it.
HOPPER_MMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)\.F32(?:\.\w+)* R\d+, (gdesc\[UR\d+\])?")


# Sets aside the refusal of `TmaConfig.suits` for one call.
UNRESTRICTED = (
    SETUP
    + """
def unrestricted(call):
    suits, TmaConfig.suits = TmaConfig.suits, lambda config, size: True
    try:
        return call()
    finally:
        TmaConfig.suits = suits
"""
)


def releases_too_early(binary: Binary) -> bool:
    """Whether specialised warps hand a buffer back before the product that reads it was started."""
    step = binary.multiplying_loop
    assert {"wait_barrier", "arrive_barrier", "warp_group_dot"} <= set(step), binary
    return "arrive_barrier" in step[: step.index("warp_group_dot")]


def check_tensor_cores(binary: Binary, config: TmaConfig) -> None:
    """Fails unless the tensor cores read both operands from where the TMA put them, and multiply each step once."""
    assert binary.mma == (TENSOR_CORES[binary.sm],), f"{config}: {binary}"
    assert binary.opcodes.get("UTMALDG", 0) > 0, f"{config}: nothing is loaded by the TMA: {binary}"
    if binary.sm != 90:
        assert all(text.split(",")[:2] == re.findall(r"UTCHMMA gdesc\[UR\d+\]| gdesc\[UR\d+\]", text)[:2] for text in binary.mma_text), binary
        return
    shapes = [HOPPER_MMA.match(text) for text in binary.mma_text]
    assert all(shape is not None and shape[4] for shape in shapes), f"{config}: an operand passes through registers: {binary}"
    # Groups of warps that run the same code share a step; specialised ones have each their own code.
    groups = 1 if config.warp_specialize else config.num_warps // 4
    products = groups * sum(int(shape[1]) * int(shape[2]) * int(shape[3]) for shape in shapes if shape)
    assert products == config.block_m * config.channels * config.block_k, f"{config}: {products} products a step: {binary}"


def check_warps(binary: Binary, config: TmaConfig) -> None:
    """Fails unless the warps are specialised where the configuration says so, and nowhere else."""
    moves_registers = binary.opcodes.get("USETMAXREG", 0) > 0
    assert moves_registers == config.warp_specialize, f"{config}: {binary}"
    # One group loads and two multiply.
    assert binary.num_warps == (12 if config.warp_specialize else config.num_warps), f"{config}: {binary}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("sm", TENSOR_CORES)
def test_every_configuration(sm: int, name: str) -> None:
    dtype, precision = PRECISIONS[name]
    configs = tma_configs_for(dtype, sm, precision)
    calls = [
        (FULL if leaves_registers(config) else PLAIN).format(
            # Specialised warps take pixels of one row only.
            dtype=dtype,
            config=config,
            precision=precision,
            width=256 if config.warp_specialize else 17,
        )
        for config in configs
    ]
    binaries = compile_kernels([CallRequest(call, SETUP) for call in calls], (sm,))
    assert len(binaries) == len(configs) > 0
    for config, binary in zip(configs, binaries, strict=True):
        binary.check_resources()
        check_tensor_cores(binary, config)
        check_warps(binary, config)
        assert binary.shared >= config.shared_bytes(dtype.itemsize)
        assert binary.widest_access == 128, f"{config}: loads and stores are narrower than 16 bytes: {binary}"


@pytest.mark.slow
def test_the_other_roads_through_the_kernel() -> None:
    specialized = next(config for config in tma_configs_for(torch.float16, 90) if config.warp_specialize)
    plain = TmaConfig(128, 128, 0, 64, 8, 3)
    calls = {
        f"conv2d_tma(conv(1, 192, 192, (1, 7), torch.bfloat16, (0, 3), 256), config={specialized})": specialized,
        f"conv2d_tma(conv(8, 288, 192, (1, 1), torch.float16), config={specialized})": specialized,
        f"conv2d_tma(conv(128, 288, 192, (1, 1), torch.bfloat16), config={plain})": plain,
        f"conv2d_tma(Convolution(nhwc(8, 24, 17, 17)[:, :17], pack_weight(torch.empty(13, 17, 3, 3).half()), None), config={plain})": plain,
    }
    binaries = compile_kernels([CallRequest(call, SETUP) for call in calls], (90,))
    assert len(binaries) == len(calls)
    for config, binary in zip(calls.values(), binaries, strict=True):
        binary.check_resources()
        check_tensor_cores(binary, config)
        check_warps(binary, config)


@pytest.mark.slow
def test_specialised_warps_release_a_buffer_after_its_product() -> None:
    configs = [config for config in tma_configs_for(torch.float16, 90) if config.warp_specialize]
    assert configs
    one_row, flat = "conv(1, 192, 192, (1, 7), torch.float16, (0, 3), 256)", "conv(8, 288, 192, (1, 1), torch.float16)"
    calls = [f"conv2d_tma({arguments}, config={config})" for config in configs for arguments in (one_row, flat)]
    for binary in compile_kernels([CallRequest(call, SETUP) for call in calls], (90,)):
        assert not releases_too_early(binary), binary


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 56, 56), (128, 8, 8)], ids=["rows", "images"])
def test_the_compiler_still_needs_pixels_in_one_row(size: tuple[int, int, int]) -> None:
    n, p, q = size
    config = TmaConfig(128, 128, 0, 64, 4, 4, True)
    assert not config.suits(TmaSize(n, p, q, 192, 128, 9))
    weight = "pack_weight(torch.empty(192, 128, 3, 3).half())"
    call = f"unrestricted(lambda: conv2d_tma(Convolution(nhwc({n}, 128, {p}, {q}), {weight}, None, 1, 1), config={config}))"
    (binary,) = compile_kernels([CallRequest(call, UNRESTRICTED)], (90,))
    assert releases_too_early(binary), "this Triton orders it right: `TmaConfig.suits` may let specialised warps take any box from this version on"
