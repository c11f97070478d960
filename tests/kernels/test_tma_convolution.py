"""The convolution through tensor descriptors against PyTorch's: boxes of every shape, slices, splits and dtypes; and the choice of boxes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from math import inf, nan

import pytest
import torch
import triton
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels import Convolution, conv2d_tma, conv2d_tma_ref, pack_weight, supports_tma, tma_convolution
from fastcnn.kernels.tma_convolution_configs import (
    Box,
    TmaConfig,
    TmaSize,
    choose_box,
    choose_tma_config,
    leaves_registers,
    rank_tma_configs,
    tma_configs_for,
)

from .convolution_cases import check_error, random_bias, random_weight
from .tensors import DTYPES, Convert, activation, fake, guarded_output, on_cpu, same

SMALL = TmaConfig(16, 16, 0, 16, 4, 2)  # several tiles and steps in tensors that are quick to interpret
TWO_SUMS = TmaConfig(16, 16, 8, 16, 4, 2)
SPECIALIZED = replace(SMALL, warp_specialize=True)
Pair = int | tuple[int, int]


def width_for(config: TmaConfig) -> int:
    """Columns of an output: specialised warps are for tiles within one row."""
    return config.block_m if config.warp_specialize else 6


@dataclass(frozen=True)
class Case:
    name: str
    c: int
    k: int
    kernel: tuple[int, int]
    n: int = 2
    h: int = 5
    w: int = 6
    padding: Pair = 0
    dilation: Pair = 1
    config: TmaConfig | None = SMALL
    launches: int = 1

    def convolution(self, dtype: torch.dtype, device: torch.device) -> Convolution:
        """Pixels start at multiples of 16 bytes: fewer channels are a slice, with NaN beside it."""
        multiple = 16 // dtype.itemsize
        buffer = torch.full((self.n, -(-self.c // multiple) * multiple, self.h, self.w), nan, dtype=dtype, device=device)
        x = buffer.to(memory_format=torch.channels_last)[:, : self.c].copy_(activation((self.n, self.c, self.h, self.w), dtype, device))
        weight = pack_weight(random_weight(self.k, self.c, *self.kernel, dtype, device))
        return Convolution(x, weight, random_bias(self.k, device), 1, self.padding, self.dilation)


CASES = (
    Case("1×1", 32, 32, (1, 1)),
    Case("1×1, primes", 17, 13, (1, 1), n=3),
    Case("1×1, padded", 16, 8, (1, 1), padding=1),
    Case("3×3", 16, 24, (3, 3), padding=1),
    Case("3×3, primes", 17, 19, (3, 3), n=3, h=7, w=5, padding=1),
    Case("3×3, two accumulators", 24, 41, (3, 3), padding=1, config=TWO_SUMS),
    Case("3×3, specialised warps", 24, 41, (3, 3), w=32, padding=1, config=SPECIALIZED),
    Case("3×3, no padding", 20, 17, (3, 3)),
    Case("3×3, dilated", 16, 16, (3, 3), padding=2, dilation=2),
    Case("3×3, unlike paddings and dilations", 16, 8, (3, 3), h=11, w=9, padding=(2, 0), dilation=(3, 2)),
    Case("3×3, more padding than window", 16, 8, (3, 3), padding=(4, 5)),
    Case("3×3, many images", 16, 8, (3, 3), n=17, h=2, w=3, padding=1),
    Case("5×5", 48, 16, (5, 5), n=1, h=6, padding=2),
    Case("1×7", 19, 16, (1, 7), padding=(0, 3)),
    Case("7×1", 19, 16, (7, 1), padding=(3, 0)),
    Case("80 channels, steps of 64", 80, 16, (3, 3), padding=1, config=replace(SMALL, block_k=64)),
    Case("48 channels, steps of 64", 48, 16, (3, 3), w=16, padding=1, config=replace(SPECIALIZED, block_k=64)),
    Case("one channel past a step, one out", 33, 1, (3, 3), padding=1),
    Case("one pixel", 17, 18, (3, 3), n=1, h=1, w=1, padding=1),
    Case("one pixel for each image", 16, 18, (1, 1), n=5, h=1, w=1),
    Case("one row", 16, 8, (1, 3), h=1),
    Case("one column", 16, 8, (3, 1), w=1),
    Case("window as large as the image", 16, 8, (5, 6)),
    Case("exactly one box", 16, 16, (3, 3), n=1, h=4, w=4, padding=1),
    Case("one pixel past a box", 16, 17, (1, 3), n=1, h=1, w=17, padding=(0, 1)),
    Case("one image, row and channel past a box", 17, 17, (3, 3), n=3, h=3, w=3, padding=1),
    Case("a shipped configuration", 80, 70, (3, 3), padding=1, config=None),
    Case("empty batch", 16, 8, (3, 3), n=0, launches=0),
)


def _precision(dtype: torch.dtype) -> dict[str, str]:
    return {"input_precision": "tf32"} if dtype == torch.float32 else {}


def _check(result: Tensor, convolution: Convolution) -> None:
    expected = conv2d_tma_ref(on_cpu(convolution))
    if result.dtype == torch.float32:
        # TF32 keeps 10 bits of each factor, where hundreds of products average their roundings, and of the result, which
        # is all that the interpreter rounds.
        error = 2**-8 if result.is_cuda else 2**-10
        torch.testing.assert_close(result.cpu(), expected, rtol=error, atol=error)
    else:
        check_error(result, conv2d_tma_ref(on_cpu(convolution, torch.float64)), expected)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for i, case in enumerate(CASES) for dtype in (DTYPES if i % 4 == 0 else (torch.float16,))],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_matches_pytorch(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    convolution = case.convolution(dtype, device)
    result = conv2d_tma(convolution, config=case.config, **_precision(dtype))
    assert launches == ({"conv2d_tma": case.launches} if case.launches else {})
    if case.n == 0:
        assert list(result.shape) == list(conv2d_tma_ref(convolution).shape)
    else:
        assert result.is_contiguous(memory_format=torch.channels_last)
        _check(result, convolution)


@pytest.mark.parametrize("config", [SMALL, TWO_SUMS, SPECIALIZED], ids=["plain", "two accumulators", "specialised warps"])
@pytest.mark.parametrize(("dtype", "relu"), [(torch.float16, True), (torch.float16, False), (torch.bfloat16, True), (torch.float32, False)])
def test_residual(dtype: torch.dtype, relu: bool, config: TmaConfig, device: torch.device) -> None:
    residual = activation((2, 33, 5, width_for(config)), dtype, device, seed=5)[:, 9:29]
    convolution = Case("residual", 24, 20, (3, 3), w=width_for(config), padding=1).convolution(dtype, device)._replace(residual=residual, relu=relu)
    _check(conv2d_tma(convolution, config=config, **_precision(dtype)), convolution)


@pytest.mark.parametrize("config", [SMALL, SPECIALIZED], ids=["plain", "specialised warps"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)], ids=["1×1", "3×3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_reads_a_slice_and_writes_a_slice(
    dtype: torch.dtype, kernel: tuple[int, int], config: TmaConfig, device: torch.device, launches: Counter[str]
) -> None:
    width = width_for(config)
    convolution = Case("slices", 19, 21, kernel, w=width, padding=kernel[0] // 2).convolution(dtype, device)
    # What lies beside the slice must not even be multiplied by zero.
    whole = torch.full((4, 40, 5, width), nan, dtype=dtype, device=device).to(memory_format=torch.channels_last)[1:3]
    whole[:, 8:27] = convolution.x
    out, check_neighbours = guarded_output((2, 21, 5, width), 3, 5, like=whole)
    assert conv2d_tma(convolution._replace(x=whole[:, 8:27]), out=out, config=config, **_precision(dtype)) is out
    _check(out, convolution)
    check_neighbours()
    assert launches == {"conv2d_tma": 1}


def test_windows_of_larger_images(device: torch.device) -> None:
    residual = activation((2, 20, 7, 6), torch.float16, device, seed=7)[:, :, 1:6]
    convolution = Case("windows", 16, 20, (3, 3), padding=1).convolution(torch.float16, device)._replace(residual=residual)
    # Pixels beside the window are real memory, and still padding.
    inner = activation((2, 24, 8, 10), torch.float16, device)[:, 8:24, 2:7, 1:7].copy_(convolution.x)
    buffer = torch.full((2, 20, 7, 8), nan, dtype=torch.float16, device=device).to(memory_format=torch.channels_last)
    out = buffer[:, :, 1:6, 1:7]
    conv2d_tma(convolution._replace(x=inner), out=out, config=SMALL)
    _check(out, convolution)
    assert buffer.isnan().sum() == buffer.numel() - out.numel()
    pointwise = Case("pointwise", 16, 20, (1, 1)).convolution(torch.float16, device)._replace(x=inner)
    _check(conv2d_tma(pointwise, config=SMALL), pointwise)


@pytest.mark.parametrize("stops", [(41,), (16, 41), (5, 22, 41), (1, 17, 33, 41)], ids=lambda stops: f"{len(stops)} destinations")
@pytest.mark.parametrize("config", [SMALL, TWO_SUMS, SPECIALIZED], ids=["plain", "two accumulators", "specialised warps"])
def test_merged_siblings(config: TmaConfig, stops: tuple[int, ...], device: torch.device, launches: Counter[str]) -> None:
    convolution = Case("merged", 24, 41, (1, 1)).convolution(torch.float16, device)
    splits, checks, start = [], [], 0
    for i, stop in enumerate(stops):
        destination, check_neighbours = guarded_output((2, stop - start, 5, 6), i, 2 * i + 1, like=convolution.x)
        splits.append((start, stop, destination))
        checks.append(check_neighbours)
        start = stop
    assert conv2d_tma(convolution, splits=splits, config=config) is None
    for check_neighbours in checks:
        check_neighbours()
    _check(torch.cat([destination for *_, destination in splits], dim=1), convolution)
    assert launches == {"conv2d_tma": 1}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning", "ignore:overflow encountered:RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, device: torch.device) -> None:
    x = activation((1, 40, 6, 8), dtype, device)
    x[0, 3, 1, 1], x[0, 17, 4, 6], x[0, 20, 0, 7] = nan, inf, -0.0
    weight = random_weight(20, 40, 3, 3, dtype, device)
    bias = random_bias(20, device)
    bias[:4] = torch.tensor([nan, inf, -inf, -0.0])
    convolution = Convolution(x, pack_weight(weight), bias, padding=1)
    result = conv2d_tma(convolution, config=SMALL, **_precision(dtype)).cpu().float()
    expected = conv2d_tma_ref(on_cpu(convolution, torch.float32))
    assert result.isnan().any()
    torch.testing.assert_close(result.isnan(), expected.isnan())
    torch.testing.assert_close(result.isinf(), expected.isinf())
    tolerance = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 2**-8
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_strides_of_single_rows_and_images_may_be_anything(device: torch.device) -> None:
    plain = Case("odd strides", 16, 8, (3, 3), n=1, h=1, padding=1).convolution(torch.float16, device)
    odd = plain._replace(x=plain.x.as_strided(plain.x.shape, (3, 1, 5, 16)))
    torch.testing.assert_close(conv2d_tma(odd, config=SMALL), conv2d_tma(plain, config=SMALL), rtol=0, atol=0)


def test_the_allocator_of_the_caller_stays(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("watched where the kernel runs as Python: a compiled kernel asks for memory inside of Triton's launcher")
    seen: list[object] = []
    allocation = triton.runtime._allocation
    before = allocation._allocator.get()

    def watch(*arguments: object, **options: object) -> None:
        seen.append(allocation._allocator.get())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tma_convolution, "launch", watch)
        conv2d_tma(Case("small", 16, 8, (1, 1)).convolution(torch.float16, device))
    assert seen == [tma_convolution._workspace]
    assert allocation._allocator.get() is before


@pytest.mark.cuda
def test_replays_of_a_cuda_graph(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    config = TmaConfig(128, 128, 0, 64, 4, 4, True)
    convolution = Case("graph", 64, 128, (3, 3), n=4, h=17, w=128, padding=1).convolution(torch.float16, device)
    conv2d_tma(convolution, config=config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = conv2d_tma(convolution, config=config)
    for seed in range(3):
        convolution.x.copy_(activation(convolution.x.shape, torch.float16, device, seed=seed))
        torch.empty(1 << 20, device=device).fill_(nan)
        graph.replay()
        _check(result, convolution)


def test_specialised_warps_take_pixels_of_one_row_only(device: torch.device) -> None:
    case = Case("two images", 16, 16, (1, 1), n=2, h=2, w=4, padding=1, config=SPECIALIZED)
    with pytest.raises(InputError, match="specialised warps need tiles of pixels in one row of one image, not Box"):
        conv2d_tma(case.convolution(torch.float16, device), config=case.config)


def test_registration(device: torch.device) -> None:
    x, weight, bias, *_ = Case("small", 16, 8, (3, 3), n=1, h=4, w=18).convolution(torch.float16, device)
    outs = [torch.empty(1, k, 2, 16, dtype=torch.float16, device=device).to(memory_format=torch.channels_last) for k in (3, 5)]
    geometry = ([1, 1], [0, 0], [1, 1])
    config = SPECIALIZED.encode()
    assert TmaConfig.decode(config) == SPECIALIZED
    torch.library.opcheck(torch.ops.fastcnn.conv2d_tma.default, (x, weight, bias, *geometry, None, True, config, "ieee"))
    torch.library.opcheck(torch.ops.fastcnn.conv2d_tma_out.default, (x, weight, bias, *geometry, None, True, outs, [0, 3], config, "ieee"))


NHWC = torch.channels_last
X = torch.zeros(2, 16, 5, 5, dtype=torch.float16).to(memory_format=NHWC)
WEIGHT = pack_weight(torch.zeros(4, 16, 3, 3, dtype=torch.float16))
OUT = torch.zeros(2, 4, 3, 3, dtype=torch.float16).to(memory_format=NHWC)
RGB = torch.zeros(2, 3, 5, 5, dtype=torch.float16).to(memory_format=NHWC)
WIDE = torch.zeros(2, 40, 5, 5, dtype=torch.float16).to(memory_format=NHWC)
UNSUPPORTED = {
    "stride": ({"stride": 2}, r"stride \(2, 2\)"),
    "float32": ({"x": X.float(), "weight": WEIGHT.float()}, "float32 in full precision .* input_precision='tf32'"),
    "three channels": ({"x": RGB, "weight": pack_weight(torch.zeros(4, 3, 3, 3, dtype=torch.float16))}, "3 input channels: fewer than 8"),
    "address": ({"x": WIDE[:, 4:20]}, "x starts at an address that is no multiple of 16 bytes"),
    "pixels": ({"x": torch.zeros(2, 20, 5, 5, dtype=torch.float16).to(memory_format=NHWC)[:, :16]}, r"strides \(500, 1, 100, 20\)"),
    "repeated images": ({"x": X[:1].expand(2, -1, -1, -1)}, r"strides \(0, 1, 80, 16\)"),
}
REFUSED = {
    **UNSUPPORTED,
    "rank": ({"x": X[0]}, r"\[N, C, H, W\], got \[16, 5, 5\]"),
    "weight of other channels": ({"x": WIDE}, r"\[K, R, S, 48\]"),
    "weight dtype": ({"weight": WEIGHT.float()}, "weight is torch.float32"),
    "image smaller than the window": ({"dilation": 3}, r"\[2, 16, 5, 5\] is smaller than the window"),
    "residual shape": ({"residual": X}, r"residual must have the shape \[2, 4, 3, 3\]"),
    "out shape": ({"out": X}, r"the shape \[2, 4, 3, 3\], got \[2, 16, 5, 5\]"),
    "splits and out": ({"out": OUT, "splits": [(0, 4, OUT)]}, "without out"),
    "splits with a gap": ({"splits": [(0, 1, OUT[:, :1]), (2, 4, OUT[:, :2])]}, r"once and in order.* \[\(0, 1\), \(2, 4\)\]"),
    "no splits": ({"splits": []}, "once and in order"),
    "input precision": ({"input_precision": "bf16"}, "ieee, tf32, got 'bf16'"),
}


@pytest.mark.parametrize(
    ("name", "convert"),
    # A fake tensor has no address: that one is left to the launch.
    [*((name, same) for name in REFUSED), *((name, fake) for name in REFUSED if name != "address")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_wrong_request_is_refused(name: str, convert: Convert) -> None:
    changes, message = REFUSED[name]
    arguments = convert({"x": X, "weight": WEIGHT, "bias": None, **changes})
    convolution = Convolution(**{name: arguments.pop(name) for name in Convolution._fields if name in arguments})
    with pytest.raises(InputError, match=message):
        conv2d_tma(convolution, **arguments)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_reason_against_a_call(name: str) -> None:
    changes, reason = UNSUPPORTED[name]
    convolution = Convolution(**{"x": X, "weight": WEIGHT, "bias": None, **changes})
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(supports_tma(convolution))


def test_no_reason_against_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = Convolution(X, WEIGHT, None)
    assert supports_tma(convolution) is None
    assert supports_tma(convolution._replace(padding=(0, 3), dilation=2)) is None
    assert supports_tma(Convolution(X.float(), WEIGHT.float(), None), input_precision="tf32") is None
    assert supports_tma(convolution._replace(x=WIDE[:, 8:24])) is None
    monkeypatch.setattr(tma_convolution, "device_limits", lambda device: (89, 128))
    assert supports_tma(convolution) == "compute capability 8.9: needs 9.0 (Hopper) or 10.x (Blackwell)"
    monkeypatch.setattr(tma_convolution, "is_interpreted", lambda kernel: False)
    assert supports_tma(convolution) == "tensors on cpu: compiled kernels run on CUDA tensors"


@pytest.mark.parametrize(
    ("n", "p", "q", "block_m", "box"),
    [
        (128, 17, 17, 128, Box(128, 1, 1)),
        (128, 8, 8, 128, Box(2, 8, 8)),
        (32, 17, 17, 128, Box(32, 2, 2)),
        (1, 17, 17, 64, Box(1, 2, 32)),
        (1, 1, 289, 128, Box(1, 1, 128)),
        (1, 1, 1, 64, Box(1, 1, 64)),
        (5, 1, 1, 8, Box(8, 1, 1)),
    ],
)
def test_the_box_with_the_fewest_tiles(n: int, p: int, q: int, block_m: int, box: Box) -> None:
    chosen = choose_box(n, p, q, block_m)
    assert math.prod(chosen) == block_m
    every = [Box(1 << i, 1 << j, block_m >> i >> j) for i in range(9) for j in range(9) if 1 << i + j <= block_m]
    assert chosen.tiles(n, p, q) == min(other.tiles(n, p, q) for other in every)
    assert chosen == box


def test_waste() -> None:
    assert Box(128, 1, 1).waste(128, 17, 17) == 1.0
    assert Box(32, 2, 2).waste(32, 17, 17) == pytest.approx(18**2 / 17**2)
    assert choose_box(8, 35, 35, 128).waste(8, 35, 35) == pytest.approx(36**2 / 35**2)


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_predicted_choices(capability: int) -> None:
    configs = tma_configs_for(torch.float16, capability)
    assert tma_configs_for(torch.bfloat16, capability) == configs
    assert tma_configs_for(torch.float32, capability) == ()
    if capability not in (90, 100):
        assert configs == ()
        return
    assert any(config.warp_specialize for config in configs) == (capability == 90)
    in_rows, in_boxes = TmaSize(8, 17, 256, 192, 192, 9), TmaSize(128, 8, 8, 384, 448, 9)
    assert set(rank_tma_configs(in_rows, torch.float16, capability)) == set(configs)
    assert set(rank_tma_configs(in_boxes, torch.float16, capability)) == {config for config in configs if not config.warp_specialize}
    large = choose_tma_config(TmaSize(128, 35, 35, 256, 192, 9), torch.float16, capability)
    small = choose_tma_config(TmaSize(1, 17, 17, 192, 768, 1, is_flat=True), torch.float16, capability)
    summed = choose_tma_config(TmaSize(128, 35, 35, 256, 192, 9), torch.float16, capability, needs_registers=True)
    assert {large, small, summed} <= set(configs)
    assert large.block_m * large.channels > small.block_m * small.channels
    assert leaves_registers(summed)
    assert choose_tma_config(TmaSize(0, 17, 17, 192, 768, 1), torch.float16, capability) in configs
