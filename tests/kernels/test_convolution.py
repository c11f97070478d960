"""The implicit GEMM against PyTorch's convolution: every window, slice, split and grouping, in every dtype."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels import Convolution, GroupedConv, conv2d_bias_relu, conv2d_bias_relu_ref, conv2d_group, conv2d_group_ref, pack_weight
from fastcnn.kernels.convolution_configs import ConvConfig, ConvSize, choose_config, choose_split_k, configs_for

from .convolution_cases import check_error, random_bias, random_weight
from .tensors import DTYPES, Convert, activation, fake, guarded_output, on_cpu, same

SMALL = ConvConfig(16, 16, 16, 4, 2)  # several tiles and steps in tensors that are quick to interpret
SMALL_CHANNELS_OUTER = replace(SMALL, channels_outer=True)
Pair = int | tuple[int, int]


@dataclass(frozen=True)
class Case:
    name: str
    c: int
    k: int
    kernel: tuple[int, int]
    n: int = 2
    h: int = 5
    w: int = 6
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    config: ConvConfig | None = SMALL
    split_k: int = 1
    launches: int = 1

    def convolution(self, dtype: torch.dtype, device: torch.device) -> Convolution:
        x = activation((self.n, self.c, self.h, self.w), dtype, device)
        weight = pack_weight(random_weight(self.k, self.c, *self.kernel, dtype, device))
        return Convolution(x, weight, random_bias(self.k, device), self.stride, self.padding, self.dilation)


CASES = (
    Case("1×1", 32, 32, (1, 1)),
    Case("1×1, primes", 17, 13, (1, 1), n=3, h=5),
    Case("1×1, stride 2", 24, 20, (1, 1), stride=2),
    Case("1×1, padded", 16, 8, (1, 1), padding=1),
    Case("3×3", 16, 24, (3, 3), padding=1),
    Case("3×3, channels outside", 33, 24, (3, 3), padding=1, config=SMALL_CHANNELS_OUTER),
    Case("3×3, stride 2, no padding", 20, 17, (3, 3), stride=2),
    Case("3×3, dilated", 16, 16, (3, 3), padding=2, dilation=2),
    Case("3×3, unlike strides, paddings and dilations", 16, 8, (3, 3), h=11, w=13, stride=(1, 3), padding=(2, 0), dilation=(3, 2)),
    Case("5×5", 48, 16, (5, 5), n=1, h=6, padding=2),
    Case("7×7, stride 2", 5, 16, (7, 7), n=1, h=9, w=8, stride=2, padding=3),
    Case("1×7", 19, 16, (1, 7), padding=(0, 3)),
    Case("7×1", 19, 16, (7, 1), padding=(3, 0)),
    Case("1×3", 16, 19, (1, 3), padding=(0, 1)),
    Case("3×1", 16, 19, (3, 1), padding=(1, 0)),
    Case("one channel in, one out", 1, 1, (3, 3), padding=1),
    Case("one channel out", 16, 1, (1, 1)),
    Case("one pixel", 17, 18, (3, 3), n=1, h=1, w=1, padding=1),
    Case("one pixel for each image", 16, 18, (1, 1), n=5, h=1, w=1),
    Case("one row", 16, 8, (1, 3), h=1),
    Case("one column", 16, 8, (3, 1), w=1),
    Case("window as large as the image", 16, 8, (5, 6)),
    Case("exactly one tile", 16, 16, (1, 1), n=1, h=4, w=4),
    Case("one pixel and one channel past a tile", 17, 17, (1, 1), n=1, h=1, w=17),
    Case("a shipped configuration", 80, 70, (3, 3), padding=1, config=None),
    Case("empty batch", 16, 8, (3, 3), n=0, launches=0),
    Case("split reduction", 40, 24, (3, 3), padding=1, split_k=4, launches=2),
    Case("split reduction, channels outside", 40, 24, (3, 3), n=1, config=SMALL_CHANNELS_OUTER, split_k=4, launches=2),
    Case("split reduction, 1×1", 70, 24, (1, 1), n=1, split_k=5, launches=2),
    Case("split reduction, empty batch", 40, 24, (3, 3), n=0, split_k=4, launches=0),
)
MERGED = Case("merged", 24, 41, (1, 1))


def _check(result: Tensor, convolution: Convolution) -> None:
    check_error(result, conv2d_bias_relu_ref(on_cpu(convolution, torch.float64)), conv2d_bias_relu_ref(on_cpu(convolution)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_pytorch(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    convolution = case.convolution(dtype, device)
    result = conv2d_bias_relu(convolution, config=case.config, split_k=case.split_k)
    assert launches.total() == case.launches
    if case.n == 0:
        assert list(result.shape) == list(conv2d_bias_relu_ref(convolution).shape)
    else:
        assert result.is_contiguous(memory_format=torch.channels_last)
        _check(result, convolution)


@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual(dtype: torch.dtype, relu: bool, split_k: int, device: torch.device, launches: Counter[str]) -> None:
    residual = activation((2, 33, 5, 6), dtype, device, seed=5)[:, 8:28]
    convolution = Case("residual", 24, 20, (3, 3), padding=1).convolution(dtype, device)._replace(residual=residual, relu=relu)
    _check(conv2d_bias_relu(convolution, config=SMALL, split_k=split_k), convolution)
    assert launches.total() == (1 if split_k == 1 else 2)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)], ids=["1×1", "3×3"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_a_slice_and_writes_a_slice(dtype: torch.dtype, kernel: tuple[int, int], device: torch.device, launches: Counter[str]) -> None:
    convolution = Case("slices", 19, 21, kernel, padding=kernel[0] // 2).convolution(dtype, device)
    # What lies beside the slice must not even be multiplied by zero.
    whole = torch.full((2, 40, 5, 6), nan, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    whole[:, 8:27] = convolution.x
    out, check_neighbours = guarded_output((2, 21, 5, 6), 3, 5, like=whole)
    assert conv2d_bias_relu(convolution._replace(x=whole[:, 8:27]), out=out, config=SMALL) is out
    _check(out, convolution)
    check_neighbours()
    assert launches == {"conv2d_bias_relu": 1}


@pytest.mark.parametrize("split_k", [1, 2])
def test_windows_of_larger_images(split_k: int, device: torch.device) -> None:
    residual = activation((2, 20, 7, 6), device=device, seed=7)[:, :, 1:6]
    convolution = Case("windows", 16, 20, (3, 3), padding=1).convolution(torch.float32, device)._replace(residual=residual)
    inner = activation((2, 24, 8, 10), device=device)[:, 4:20, 2:7, 1:7].copy_(convolution.x)
    buffer = torch.full((2, 20, 7, 8), nan, device=device).to(memory_format=torch.channels_last)
    out = buffer[:, :, 1:6, 1:7]
    conv2d_bias_relu(convolution._replace(x=inner), out=out, config=SMALL, split_k=split_k)
    _check(out, convolution)
    assert buffer.isnan().sum() == buffer.numel() - out.numel()
    pointwise = Case("pointwise", 16, 20, (1, 1)).convolution(torch.float32, device)._replace(x=inner)
    _check(conv2d_bias_relu(pointwise, config=SMALL), pointwise)


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("stops", [(41,), (16, 41), (5, 22, 41), (1, 17, 33, 41)], ids=lambda stops: f"{len(stops)} destinations")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_siblings(dtype: torch.dtype, stops: tuple[int, ...], split_k: int, device: torch.device, launches: Counter[str]) -> None:
    convolution = MERGED.convolution(dtype, device)
    splits, checks, start = [], [], 0
    for i, stop in enumerate(stops):
        destination, check_neighbours = guarded_output((2, stop - start, 5, 6), i, 2 * i + 1, like=convolution.x)
        splits.append((start, stop, destination))
        checks.append(check_neighbours)
        start = stop
    assert conv2d_bias_relu(convolution, splits=splits, config=SMALL, split_k=split_k) is None
    for check_neighbours in checks:
        check_neighbours()
    _check(torch.cat([destination for *_, destination in splits], dim=1), convolution)
    assert launches.total() == split_k


def test_split_reduction_gives_the_same_bits_every_time(device: torch.device) -> None:
    convolution = Case("split", 64, 16, (3, 3)).convolution(torch.float32, device)
    results = [conv2d_bias_relu(convolution, config=SMALL, split_k=6) for _ in range(3)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning", "ignore:overflow encountered:RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, split_k: int, device: torch.device) -> None:
    x = activation((1, 32, 6, 8), dtype, device)
    x[0, 3, 1, 1], x[0, 17, 4, 6], x[0, 20, 0, 7] = nan, inf, -0.0
    weight = random_weight(20, 32, 3, 3, dtype, device)
    bias = random_bias(20, device)
    bias[:4] = torch.tensor([nan, inf, -inf, -0.0])
    convolution = Convolution(x, pack_weight(weight), bias, padding=1)
    result = conv2d_bias_relu(convolution, config=SMALL, split_k=split_k).cpu().float()
    expected = conv2d_bias_relu_ref(on_cpu(convolution, torch.float32))
    assert result.isnan().any()
    torch.testing.assert_close(result.isnan(), expected.isnan())
    torch.testing.assert_close(result.isinf(), expected.isinf())
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's
def test_overflow_becomes_infinity(device: torch.device) -> None:
    x = torch.full((1, 16, 2, 2), 3e4, dtype=torch.float16, device=device).to(memory_format=torch.channels_last)
    weight = pack_weight(torch.ones(3, 16, 1, 1, dtype=torch.float16, device=device))
    assert conv2d_bias_relu(Convolution(x, weight, None)).isposinf().all()


def test_without_bias_and_with_tf32(device: torch.device) -> None:
    convolution = Case("plain", 40, 24, (3, 3)).convolution(torch.float32, device)._replace(bias=None)
    result = conv2d_bias_relu(convolution, config=SMALL, input_precision="tf32").cpu()
    # TF32 keeps 10 bits of each factor; 360 products average their roundings.
    torch.testing.assert_close(result, conv2d_bias_relu_ref(on_cpu(convolution)), rtol=2**-9, atol=2**-9)


def test_packed_weight() -> None:
    weight = torch.randn(5, 19, 3, 2)
    packed = pack_weight(weight)
    assert list(packed.shape) == [5, 3, 2, 32]
    assert packed.is_contiguous()
    torch.testing.assert_close(packed[..., :19].permute(0, 3, 1, 2), weight, rtol=0, atol=0)
    torch.testing.assert_close(packed[..., 19:], torch.zeros(5, 3, 2, 13), rtol=0, atol=0)


GROUP = (
    Case("5×5", 24, 17, (5, 5), n=1, padding=2),
    Case("3×3, stride 2", 40, 33, (3, 3), stride=2),
    Case("1×1", 16, 9, (1, 1), h=4, w=3),
    Case("1×7, dilated", 19, 16, (1, 7), padding=(0, 6), dilation=2),
)


@pytest.mark.parametrize(
    ("count", "config"),
    [(1, SMALL), (2, SMALL), (3, SMALL_CHANNELS_OUTER), (4, SMALL), (4, None)],
    ids=["1", "2", "3, channels outside", "4", "shipped"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group(dtype: torch.dtype, count: int, config: ConvConfig | None, device: torch.device, launches: Counter[str]) -> None:
    group, checks = [], []
    for i, case in enumerate(GROUP[:count]):
        convolution = case.convolution(dtype, device)
        shape = conv2d_bias_relu_ref(convolution._replace(bias=None)).shape
        out, check_neighbours = guarded_output(shape, i, 3, like=convolution.x)
        residual = activation(shape, dtype, device, seed=11) if i == 1 else None
        convolution = convolution._replace(bias=None if i == 2 else convolution.bias, residual=residual, relu=i != 3)
        group.append(GroupedConv(convolution, out))
        checks.append(check_neighbours)
    results = conv2d_group(group, config)
    assert launches == {"conv2d_group": 1}
    for member, result, check_neighbours in zip(group, results, checks, strict=True):
        assert result is member.out
        check_neighbours()
        _check(result, member.convolution)


def test_group_allocates_and_leaves_empty_batches_alone(device: torch.device, launches: Counter[str]) -> None:
    full, empty = Case("full", 16, 8, (3, 3)), Case("empty", 16, 8, (1, 1), n=0)
    group = [GroupedConv(case.convolution(torch.float32, device)) for case in (empty, full, empty)]
    for result, expected in zip(conv2d_group(group), conv2d_group_ref(group), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)
    assert launches == {"conv2d_group": 1}


def test_registration(device: torch.device) -> None:
    x, weight, bias, *_ = Case("small", 16, 8, (3, 3), n=1, h=4, w=4).convolution(torch.float32, device)
    outs = [torch.empty(1, k, 2, 2, device=device).to(memory_format=torch.channels_last) for k in (3, 5)]
    geometry = ([1, 1], [0, 0], [1, 1])
    config = SMALL.encode()
    assert ConvConfig.decode(config) == SMALL
    torch.library.opcheck(torch.ops.fastcnn.conv2d_bias_relu.default, (x, weight, bias, *geometry, None, True, 1, config, "ieee"))
    torch.library.opcheck(torch.ops.fastcnn.conv2d_bias_relu_out.default, (x, weight, bias, *geometry, None, True, outs, [0, 3], 2, config, "ieee"))
    group = ([x, x], [weight[:3], weight[3:]], [bias[:3], None], [1, 1, 0, 0, 1, 1] * 2, [None, None], [True, False], outs, config, "ieee")
    torch.library.opcheck(torch.ops.fastcnn.conv2d_group.default, group)


NHWC = torch.channels_last
X = torch.zeros(2, 8, 5, 5).to(memory_format=NHWC)
WEIGHT = pack_weight(torch.zeros(4, 8, 3, 3))
OUT = torch.zeros(2, 4, 3, 3).to(memory_format=NHWC)
REFUSED = {
    "rank": ({"x": X[0]}, r"\[N, C, H, W\], got \[8, 5, 5\]"),
    "dtype": ({"x": X.double()}, "float64"),
    "format": ({"x": X.contiguous()}, "must be channels_last"),
    "unpacked weight": ({"weight": torch.zeros(4, 8, 3, 3)}, r"must come from pack_weight, \[K, R, S, 16\]"),
    "weight rank": ({"weight": torch.zeros(4, 8)}, r"must come from pack_weight, .* got \[4, 8\]"),
    "weight of other channels": ({"x": torch.zeros(2, 17, 5, 5).to(memory_format=NHWC)}, r"\[K, R, S, 32\]"),
    "weight dtype": ({"weight": WEIGHT.half()}, "weight is torch.float16"),
    "bias size": ({"bias": torch.zeros(5)}, r"bias must have the shape \[4\], got \[5\]"),
    "bias dtype": ({"bias": torch.zeros(4).double()}, "bias is torch.float64"),
    "stride": ({"stride": 0}, "stride and dilation must be positive"),
    "padding": ({"padding": (0, -1)}, "padding not negative"),
    "image smaller than the window": ({"dilation": 3}, r"\[2, 8, 5, 5\] is smaller than the window"),
    "residual shape": ({"residual": X}, r"residual must have the shape \[2, 4, 3, 3\].* got \[2, 8, 5, 5\]"),
    "residual format": ({"residual": OUT.contiguous()}, "residual must have the shape .* channels_last"),
    "out shape": ({"out": X}, r"the shape \[2, 4, 3, 3\], got \[2, 8, 5, 5\]"),
    "out format": ({"out": OUT.contiguous()}, "must be channels_last"),
    "splits and out": ({"out": OUT, "splits": [(0, 4, OUT)]}, "without out"),
    "splits with a gap": ({"splits": [(0, 1, OUT[:, :1]), (2, 4, OUT[:, :2])]}, r"once and in order.* \[\(0, 1\), \(2, 4\)\]"),
    "splits that stop early": ({"splits": [(0, 1, OUT[:, :1])]}, "each of the 4 output channels"),
    "split of another width": ({"splits": [(0, 2, OUT[:, :1]), (2, 4, OUT[:, :2])]}, r"shape \[2, 2, 3, 3\], got \[2, 1, 3, 3\]"),
    "split_k": ({"split_k": 1000}, "split_k must be 1 to"),
    "input precision": ({"input_precision": "bf16"}, "ieee, tf32, got 'bf16'"),
}


@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused(name: str, convert: Convert) -> None:
    changes, message = REFUSED[name]
    arguments = convert({"x": X, "weight": WEIGHT, "bias": torch.zeros(4), **changes})
    convolution = Convolution(**{name: arguments.pop(name) for name in Convolution._fields if name in arguments})
    with pytest.raises(InputError, match=message):
        conv2d_bias_relu(convolution, **arguments)


@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
def test_a_wrong_group_is_refused(convert: Convert) -> None:
    x, weight, bias, out = convert((X, WEIGHT, torch.zeros(4), OUT))
    conv, half, half_out = Convolution(x, weight, bias), Convolution(x.half(), weight.half(), None), out.half()
    member = GroupedConv(conv, out)
    with pytest.raises(InputError, match="1 to 4 convolutions, got 5"):
        conv2d_group([member] * 5)
    with pytest.raises(InputError, match="1 to 4 convolutions, got 0"):
        conv2d_group([])
    with pytest.raises(InputError, match="share dtype and device"):
        conv2d_group([member, GroupedConv(half, half_out)])
    with pytest.raises(InputError, match="share a dtype"):
        conv2d_group([GroupedConv(half._replace(bias=vector), half_out) for vector in (bias, bias.half())])
    with pytest.raises(InputError, match=r"the shape \[2, 4, 3, 3\], got \[2, 8, 5, 5\]"):
        conv2d_group([member, GroupedConv(conv, x)])
    with pytest.raises(InputError, match="is smaller than the window"):
        conv2d_group([member, GroupedConv(conv._replace(dilation=3), out)])
    with pytest.raises(InputError, match="ieee, tf32, got 'bf16'"):
        conv2d_group([member], input_precision="bf16")


@pytest.mark.parametrize("capability", [70, 80, 89, 90, 100])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")])
def test_predicted_choices(dtype: torch.dtype, precision: str, capability: int) -> None:
    shipped = configs_for(dtype, precision, capability)
    large = choose_config([ConvSize(128 * 35 * 35, 256, 192, 9)], dtype, precision, capability)
    small = choose_config([ConvSize(17 * 17, 192, 768, 1)], dtype, precision, capability)
    assert {large, small} <= set(shipped)
    assert large.block_m * large.block_n > small.block_m * small.block_n
    assert choose_split_k(large, ConvSize(128 * 35 * 35, 256, 192, 9)) == 1
    size = ConvSize(8 * 8, 384, 2048, 1)
    assert 1 < choose_split_k(small, size) <= small.steps(size)
    assert choose_split_k(small, ConvSize(0, 384, 2048, 1)) == 1
