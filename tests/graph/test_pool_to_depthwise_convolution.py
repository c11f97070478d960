"""An average pool with a bias behind it is a depthwise convolution where it counts its padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 6, 9, 8)
NAME = "pool_to_depthwise_convolution"


def _biased_pool(kernel=3, **options):
    return lambda s, x: F.relu(F.avg_pool2d(x, kernel, **{"stride": 1, "padding": 1, **options}) + s.bias)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        pytest.param(3, {}, id="3x3 stride 1"),
        pytest.param(3, {"stride": 2}, id="stride 2"),
        pytest.param((2, 3), {"padding": (1, 0)}, id="rectangular"),
        pytest.param(3, {"padding": 0, "count_include_pad": False}, id="no padding to count"),
        pytest.param(2, {"stride": None, "padding": 0}, id="stride of the window"),
    ],
)
def test_fires_and_is_exact(kernel, options):
    graph, report = apply_pass(net(_biased_pool(kernel, **options), bias=torch.randn(6, 1, 1)), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "relu"]
    assert next(graph.calls()).args[6] == 6


def test_behind_a_moved_pool():
    model = net(lambda s, x: F.relu(s.conv(F.avg_pool2d(x, 3, 1, 1))), conv=nn.Conv2d(6, 4, 1))
    graph, report = apply_pass(model, IMAGE, NAME, "move_pool_behind_projection")

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "conv2d", "relu"]
    _, depthwise, _ = graph.calls()
    assert depthwise.meta["folded"] == ("moved behind the projection", "avg_pool2d", "bias of the projection")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_biased_pool(count_include_pad=False), "the pool does not count its padding"),
        (_biased_pool(stride=2, ceil_mode=True), "ceil-mode pool"),
        (_biased_pool(divisor_override=5), "the pool divides by another number than the size of its window"),
        (lambda s, x: F.avg_pool2d(x, 3, 1, 1), "no bias is added behind the pool"),
        (lambda s, x: F.avg_pool2d(x, 3, 1, 1) + s.bias[0], "no bias is added behind the pool"),
        (lambda s, x: torch.add(F.avg_pool2d(x, 3, 1, 1), s.bias, alpha=2), "no bias is added behind the pool"),
        (lambda s, x: (pool := F.avg_pool2d(x, 3, 1, 1)) + s.bias + pool, "no bias is added behind the pool"),
    ],
    ids=["uncounted padding", "ceil mode", "divisor", "no add", "another constant", "alpha", "pool read twice"],
)
def test_declines(function, reason):
    graph, report = apply_pass(net(function, bias=torch.randn(6, 1, 1)), IMAGE, NAME)

    assert report.fired == 0
    assert reason in report.declined
    assert "avg_pool2d" in ops(graph)
