"""An average pool and the 1×1 projection behind it change places where both orders compute the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 8, 9, 9)
NAME = "move_pool_behind_projection"


def _pool(**options):
    return lambda s, x: s.conv(F.avg_pool2d(x, 3, **{"stride": 1, "padding": 1, **options}))


def test_padded_pool_adds_the_bias_afterwards():
    graph, report = apply_pass(net(_pool(), conv=nn.Conv2d(8, 4, 1)), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "avg_pool2d", "add"]
    conv, pool, add = graph.calls()
    assert conv.args[2] is None
    assert [node.meta["shape"] for node in (conv, pool, add)] == [(None, 4, 9, 9)] * 3
    assert conv.meta["folded"] == ("in front of its average pool",)


def test_padded_pool_without_bias_needs_no_add():
    graph, report = apply_pass(net(_pool(), conv=nn.Conv2d(8, 4, 1, bias=False)), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "avg_pool2d"]


@pytest.mark.parametrize("count", [True, False])
def test_unpadded_pool_keeps_the_bias_in_the_convolution(count):
    graph, report = apply_pass(net(_pool(padding=0, count_include_pad=count), conv=nn.Conv2d(8, 4, 1)), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "avg_pool2d"]
    assert next(graph.calls()).args[2] is not None


def test_behind_a_folded_batch_norm():
    model = net(lambda s, x: F.relu(s.bn(_pool()(s, x))), conv=nn.Conv2d(8, 4, 1, bias=False), bn=nn.BatchNorm2d(4))
    graph, report = apply_pass(model, IMAGE, NAME, "fold_batch_norm")

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "avg_pool2d", "add", "relu"]
    assert next(graph.calls()).meta["folded"] == ("batch_norm", "in front of its average pool")


def _pool_used_twice(s, x):
    pooled = F.avg_pool2d(x, 3, 1, 1)
    return s.conv(pooled), pooled.mean()


@pytest.mark.parametrize(
    ("function", "conv", "reason"),
    [
        pytest.param(_pool(count_include_pad=False), nn.Conv2d(8, 4, 1), "does not count its padding", id="padding not counted"),
        pytest.param(_pool(ceil_mode=True), nn.Conv2d(8, 4, 1), "ceil-mode", id="ceil mode"),
        pytest.param(_pool(stride=2), nn.Conv2d(8, 4, 1), "stride", id="strided pool"),
        pytest.param(_pool(stride=None), nn.Conv2d(8, 4, 1), "stride", id="stride of the kernel's size"),
        pytest.param(_pool(divisor_override=4, padding=0), nn.Conv2d(8, 4, 1), "divides by another number", id="divisor"),
        pytest.param(_pool(), nn.Conv2d(8, 16, 1), "widens", id="projection that widens"),
        pytest.param(_pool(), nn.Conv2d(8, 4, 3), "no 1×1 projection", id="3×3"),
        pytest.param(_pool(), nn.Conv2d(8, 4, 1, stride=2), "no 1×1 projection", id="strided projection"),
        pytest.param(_pool(), nn.Conv2d(8, 4, 1, padding=1), "no 1×1 projection", id="padded projection"),
        pytest.param(_pool(), nn.Conv2d(8, 4, 1, groups=2), "no 1×1 projection", id="grouped projection"),
        pytest.param(_pool_used_twice, nn.Conv2d(8, 4, 1), "no 1×1 projection of its own", id="pool read twice"),
        pytest.param(
            lambda s, x: torch.conv2d(F.avg_pool2d(x, 3, 1, 1), s.conv.weight, s.conv.bias * x.mean()),
            nn.Conv2d(8, 4, 1),
            "bias is computed",
            id="computed bias",
        ),
    ],
)
def test_declines(function, conv, reason):
    graph, report = apply_pass(net(function, conv=conv), IMAGE, NAME)

    assert report.fired == 0
    assert [reason in text for text in report.declined] == [True], report
    assert ops(graph).index("avg_pool2d") < ops(graph).index("conv2d")
