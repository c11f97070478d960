"""TF32 as the tensor cores compute it: they ignore the low 13 bits of what they read, so it must be rounded before."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from graph_support import images
from torch import Tensor, nn
from triton.runtime import interpreter

from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.problem import ConvWeights
from fastcnn.kernels import Convolution, conv2d_bias_relu, conv2d_tma, pack_weight
from fastcnn.kernels.convolution_configs import ConvConfig
from fastcnn.kernels.tma_convolution_configs import TmaConfig
from fastcnn.optimization import Builder
from fastcnn.precision import round_to_tf32

from .problems import PROBLEM, step_of

LAYERS = 8


def truncate(tensor: Tensor) -> Tensor:
    return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def tensor_cores(monkeypatch):
    """Has Triton's interpreter drop the bits that the tensor cores do not read."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def dropping(self, a, b, *others):
        for operand in (a, b):
            operand.data = truncate(torch.from_numpy(operand.data.copy())).numpy()
        return create_dot(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dropping)


def deep_network() -> nn.Sequential:
    """Positive weights, as after a ReLU most sums have them: an error in one direction does not average out."""
    generator = torch.Generator().manual_seed(3)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(LAYERS):
        layers[f"conv{index}"] = conv = nn.Conv2d(3 if index == 0 else 8, 8, 3 if index == 0 else 1)
        layers[f"relu{index}"] = nn.ReLU()
        with torch.no_grad():
            conv.weight.copy_(torch.rand(conv.weight.shape, generator=generator) / conv.weight[0].numel())
            conv.bias.copy_(torch.rand(8, generator=generator) / 100)
    return nn.Sequential(layers).eval()


@torch.no_grad()
def emulated_error(model: nn.Sequential, x: Tensor, cut) -> float:
    """Relative error of a network whose results and weights `cut` has shortened."""
    exact, y = x.double(), x
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            exact = F.conv2d(exact, layer.weight.double(), layer.bias.double())
            y = F.conv2d(cut(y), cut(layer.weight), layer.bias)
        else:
            exact, y = layer(exact), layer(y)
    return float((cut(y).double() - exact).norm() / exact.norm())


def test_a_network_is_as_exact_as_with_rounded_operands(tensor_cores):
    model, x = deep_network(), images(2, 3, 8, 8).abs()
    rounded, truncated = (emulated_error(model, x, cut) for cut in (round_to_tf32, truncate))
    assert truncated > 5 * rounded
    options = TritonOptions(use_cache=False, implementations=("triton_stem", "triton"))
    fast = Builder(model, x, allow_tf32=True, check=False).build(TritonEngine(options))
    want = copy.deepcopy(model).double()(x.double())
    error = float((fast(x).double() - want).norm() / want.norm())

    assert error < 1.5 * rounded


CASES = {
    "triton": lambda *a: conv2d_bias_relu(Convolution(*a), config=ConvConfig(16, 16, 16, 4, 2), input_precision="tf32"),
    "split": lambda *a: conv2d_bias_relu(Convolution(*a), split_k=2, config=ConvConfig(16, 16, 16, 4, 2), input_precision="tf32"),
    "tma": lambda *a: conv2d_tma(Convolution(*a), config=TmaConfig(16, 16, 0, 16, 4, 2), input_precision="tf32"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_kernel_stores_is_rounded_once(name):
    x = images(1, 32, 2, 8).to(memory_format=torch.channels_last)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.nan, torch.inf
    weight = torch.rand(16, 32, 1, 1)
    y = CASES[name](x, pack_weight(weight), None)

    want = F.relu(F.conv2d(x, weight))
    assert not (y[~y.isnan()].view(torch.int32) & 0x1FFF).any(), "bits that the next product would ignore"
    torch.testing.assert_close(y, want, rtol=2.0**-11 + 1e-5, atol=1e-6, equal_nan=True)
    inside = want.isfinite() & (want > 0)
    assert abs(float((y[inside] / want[inside] - 1).mean())) < 2.0**-14, "to nearest, not towards zero"


def test_rounding():
    numbers = torch.tensor([1.0, 1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11, 0.0, -0.0, torch.inf, -torch.inf])
    want = torch.tensor([1.0, 1 + 2.0**-10, 1.0, -1 - 2.0**-10, 0.0, -0.0, torch.inf, -torch.inf])
    assert torch.equal(round_to_tf32(numbers), want)
    largest_nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert round_to_tf32(largest_nan).isnan().all()


def test_weights_are_rounded_when_packed():
    step = step_of(PROBLEM)
    as_it_is, rounded = ConvWeights(step), ConvWeights(step, tf32=True)

    assert torch.equal(rounded.packed, round_to_tf32(as_it_is.packed))
    assert not torch.equal(rounded.packed, as_it_is.packed)
    assert torch.equal(rounded.stem, round_to_tf32(as_it_is.stem))
    assert torch.equal(rounded.channels_last, step.weight)
