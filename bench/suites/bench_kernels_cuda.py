"""The Triton kernels on layers of Inception-v3 at 299×299, float16, each beside what PyTorch has for the same; see the README beside this.

A case is checked against float64 before it is timed. What is timed is the replay of a CUDA graph of many launches, so that the host's part in a
launch does not hide the kernel; the launches take their inputs from several buffers in turns, so that a small one is not always in the cache.
Divide a time by `extra_info["launches"]` for that of one launch; `extra_info` also has the operations and bytes of one, for a roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BATCH_SIZES = (1, 8, 32, 128)
LAUNCHES = 24
BUFFERS = 4
# Of a float16 result against float64: a few units in the last place.
LARGEST_ERROR = 3e-3


class Layer(NamedTuple):
    """A convolution: input channels and size, output channels, window."""

    name: str
    channels: int
    size: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]


class Pool(NamedTuple):
    """A pool, "max" or "avg": channels and size of its input, and its window."""

    name: str
    kind: str
    channels: int
    size: int
    kernel: int
    stride: int
    padding: int


LAYERS = (
    Layer("Conv2d_2a_3x3", 32, 149, 32, (3, 3), 1, (0, 0)),
    Layer("Conv2d_2b_3x3", 32, 147, 64, (3, 3), 1, (1, 1)),
    Layer("Conv2d_4a_3x3", 80, 73, 192, (3, 3), 1, (0, 0)),
    Layer("Mixed_5d.branch1x1", 288, 35, 64, (1, 1), 1, (0, 0)),
    Layer("Mixed_5d.branch5x5_2", 48, 35, 64, (5, 5), 1, (2, 2)),
    Layer("Mixed_6a.branch3x3", 288, 35, 384, (3, 3), 2, (0, 0)),
    Layer("Mixed_6e.branch1x1", 768, 17, 192, (1, 1), 1, (0, 0)),
    Layer("Mixed_6e.branch7x7_2", 192, 17, 192, (1, 7), 1, (0, 3)),
    Layer("Mixed_7c.branch1x1", 2048, 8, 320, (1, 1), 1, (0, 0)),
    Layer("Mixed_7c.branch3x3dbl_2", 448, 8, 384, (3, 3), 1, (1, 1)),
)
# name, channels of the branches, size
CONCATENATIONS = (
    ("Mixed_5d", (64, 64, 96, 64), 35),
    ("Mixed_6e", (192, 192, 192, 192), 17),
    ("Mixed_7c", (320, 384, 384, 384, 384, 192), 8),
)
POOLS = (
    Pool("maxpool1", "max", 64, 147, 3, 2, 0),
    Pool("maxpool2", "max", 192, 71, 3, 2, 0),
    Pool("Mixed_6a", "max", 288, 35, 3, 2, 0),
    Pool("Mixed_5d behind its projection", "avg", 64, 35, 3, 1, 1),
    Pool("Mixed_6e behind its projection", "avg", 192, 17, 3, 1, 1),
)

batches = pytest.mark.parametrize("batch_size", BATCH_SIZES)


@batches
@pytest.mark.parametrize("implementation", ["fastcnn", "cudnn"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_conv2d_bias_relu(benchmark: BenchmarkFixture, layer: Layer, batch_size: int, implementation: str) -> None:
    """A convolution with its epilogue, beside cuDNN's fused one."""
    from fastcnn.kernels import Convolution, conv2d_bias_relu, pack_weight

    inputs = [_activation(batch_size, layer.channels, layer.size, layer.size, seed) for seed in range(BUFFERS)]
    weight = _normal((layer.outputs, layer.channels, *layer.kernel), 100) / (layer.channels * layer.kernel[0] * layer.kernel[1]) ** 0.5
    weight, bias = weight.half(), _normal((layer.outputs,), 101).half()
    window = ([layer.stride] * 2, list(layer.padding), [1, 1])
    if implementation == "fastcnn":
        packed = pack_weight(weight)
        runs = [lambda x=x: conv2d_bias_relu(Convolution(x, packed, bias, *window)) for x in inputs]
    else:
        theirs = weight.contiguous(memory_format=torch.channels_last)
        runs = [lambda x=x: torch.ops.aten.cudnn_convolution_relu(x, theirs, bias, *window, 1) for x in inputs]
    exact = F.relu(F.conv2d(inputs[0].double(), weight.double(), bias.double(), *window))
    _time(benchmark, f"{layer.name}, batch {batch_size}", runs, exact, [inputs[0], weight, bias], 2 * exact.numel() * weight[0].numel())


@batches
@pytest.mark.parametrize("implementation", ["fastcnn", "torch.cat"])
@pytest.mark.parametrize(("name", "channels", "size"), CONCATENATIONS)
def test_concat_relu(benchmark: BenchmarkFixture, name: str, channels: tuple[int, ...], size: int, batch_size: int, implementation: str) -> None:
    """The concatenation of an Inception block and its ReLU, beside PyTorch's two calls."""
    from fastcnn.kernels import concat_relu

    inputs = [[_activation(batch_size, c, size, size, 10 * seed + i) for i, c in enumerate(channels)] for seed in range(BUFFERS)]
    if implementation == "fastcnn":
        runs = [lambda branches=branches: concat_relu(branches) for branches in inputs]
    else:
        runs = [lambda branches=branches: torch.cat(branches, 1).relu_() for branches in inputs]
    exact = torch.cat(inputs[0], 1).double().relu()
    _time(benchmark, f"concat of {name}, batch {batch_size}", runs, exact, inputs[0], exact.numel())


@batches
@pytest.mark.parametrize("implementation", ["fastcnn", "torch"])
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.name)
def test_pool2d(benchmark: BenchmarkFixture, pool: Pool, batch_size: int, implementation: str) -> None:
    """A pool alone, beside PyTorch's."""
    from fastcnn import kernels

    inputs = [_activation(batch_size, pool.channels, pool.size, pool.size, seed) for seed in range(BUFFERS)]
    ours, theirs = (kernels.max_pool2d, F.max_pool2d) if pool.kind == "max" else (kernels.avg_pool2d, F.avg_pool2d)
    window = (pool.kernel, pool.stride, pool.padding)
    if implementation == "fastcnn":
        runs = [lambda x=x: ours(x, kernels.PoolWindow(*window)) for x in inputs]
    else:
        runs = [lambda x=x: theirs(x, *window) for x in inputs]
    exact = theirs(inputs[0].double(), *window)
    _time(benchmark, f"{pool.kind} pool of {pool.name}, batch {batch_size}", runs, exact, inputs[:1], exact.numel() * pool.kernel**2)


@batches
@pytest.mark.parametrize("implementation", ["fastcnn", "cudnn"])
def test_stem(benchmark: BenchmarkFixture, batch_size: int, implementation: str) -> None:
    """Conv2d_1a_3x3: pixels in bytes, NHWC, to the first activation; what PyTorch needs for that is a cast, a multiply-add and the convolution."""
    from fastcnn.kernels import StemConvolution, pack_stem_weight, stem_conv2d

    generator = torch.Generator().manual_seed(0)
    pixels = [
        torch.randint(0, 256, (batch_size, 299, 299, 3), dtype=torch.uint8, generator=generator).cuda().permute(0, 3, 1, 2) for _ in range(BUFFERS)
    ]
    weight, bias = (_normal((32, 3, 3, 3), 100) / 27**0.5).half(), _normal((32,), 101).half()
    scale, shift = torch.full((3,), 2 / 255, device="cuda"), torch.full((3,), -1.0, device="cuda")
    wide = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
    if implementation == "fastcnn":
        packed = pack_stem_weight(weight)
        runs = [lambda x=x: stem_conv2d(StemConvolution(x, packed, bias, 2, 0, scale, shift)) for x in pixels]
    else:
        theirs, window = weight.contiguous(memory_format=torch.channels_last), ([2, 2], [0, 0], [1, 1])
        half = [value.half() for value in wide]
        runs = [lambda x=x: torch.ops.aten.cudnn_convolution_relu(x.half() * half[0] + half[1], theirs, bias, *window, 1) for x in pixels]
    exact = F.relu(F.conv2d(pixels[0].double() * wide[0].double() + wide[1].double(), weight.double(), bias.double(), 2))
    _time(benchmark, f"Conv2d_1a_3x3, batch {batch_size}", runs, exact, [pixels[0], weight, bias], 2 * exact.numel() * 27)


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cuda()


def _activation(batch_size: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """[N, C, H, W] float16, channels_last, standard normal."""
    return _normal((batch_size, channels, height, width), seed).half().contiguous(memory_format=torch.channels_last)


def _time(benchmark: BenchmarkFixture, group: str, runs: Sequence[Callable[[], Tensor]], exact: Tensor, read: Sequence[Tensor], flops: int) -> None:
    """Checks the first of `runs` against `exact`, and times a CUDA graph of all of them in turns."""
    result = runs[0]()
    assert result.shape == exact.shape
    error = float((result.double() - exact).norm() / exact.norm())
    assert error <= LARGEST_ERROR
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in range(LAUNCHES):
            runs[launch % len(runs)]()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, result))
    benchmark.group = group
    benchmark.extra_info.update({"launches": LAUNCHES, "relative_error": error, "flops": flops, "bytes": moved, "gpu": torch.cuda.get_device_name()})
    benchmark.pedantic(replay, rounds=30, iterations=1, warmup_rounds=5)
