"""Residual add and ReLU go into the convolution before them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 4, 8, 8)
NAME = "fuse_convolution_epilogue"
ADD_REASON = "the add broadcasts, scales, or has a convolution that runs later"


def _conv(channels=4, **options):
    return nn.Conv2d(4, channels, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("function", "folded"),
    [
        pytest.param(lambda s, x: F.relu(s.conv(x)), ("relu",), id="relu"),
        pytest.param(lambda s, x: s.conv(x) + x, ("add",), id="add"),
        pytest.param(lambda s, x: x + s.conv(x), ("add",), id="add, other order"),
        pytest.param(lambda s, x: F.relu(s.conv(x) + x), ("add", "relu"), id="add and relu"),
        pytest.param(lambda s, x: F.relu(s.conv(x).add_(x), inplace=True), ("add", "relu"), id="in place"),
    ],
)
@pytest.mark.parametrize("conv", [_conv(), _conv(bias=False), _conv(groups=2)], ids=["bias", "no bias", "grouped"])
def test_fires(function, folded, conv):
    graph, report = apply_pass(net(function, conv=conv), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["fused_conv2d"]
    (node,) = graph.calls()
    assert node.meta["folded"] == folded
    assert (node.args[7] is not None, node.args[8]) == ("add" in folded, "relu" in folded)


def test_residual_of_two_convolutions():
    """A projected shortcut: the convolution that runs last takes the other's output."""
    graph, report = apply_pass(net(lambda s, x: F.relu(s.a(x) + s.b(x)), a=_conv(), b=_conv()), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "fused_conv2d"]
    first, fused = graph.calls()
    assert fused.args[7] is first
    assert report.declined == {ADD_REASON: 1}


def test_projected_shortcut_computed_last():
    def forward(s, x):
        y = s.b(F.relu(s.a(x)))
        return F.relu(y + s.shortcut(x))

    graph, report = apply_pass(net(forward, a=_conv(), b=_conv(), shortcut=_conv()), IMAGE, NAME)

    assert report.fired == 2
    assert ops(graph) == ["fused_conv2d", "conv2d", "fused_conv2d"]


def test_relu_read_twice():
    def forward(s, x):
        y = F.relu(s.a(x))
        return s.b(y) + y, y

    graph, report = apply_pass(net(forward, a=_conv(), b=_conv()), IMAGE, NAME)

    assert report.fired == 2
    assert ops(graph) == ["fused_conv2d", "fused_conv2d"]


def test_add_read_twice_keeps_its_relu_apart():
    def forward(s, x):
        y = s.conv(x) + x
        return F.relu(y), y

    graph, report = apply_pass(net(forward, conv=_conv()), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["fused_conv2d", "relu"]


def _read_twice(s, x):
    y = s.conv(x)
    return F.relu(y) + y


def _returned(s, x):
    y = s.conv(x)
    return F.relu(y), y


def _plus_itself(s, x):
    y = s.conv(x)
    return y + y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        pytest.param(_read_twice, "the convolution's output is used twice", id="read twice"),
        pytest.param(_returned, "the convolution's output is used twice", id="returned too"),
        pytest.param(_plus_itself, ADD_REASON, id="plus itself"),
        pytest.param(lambda s, x: torch.add(s.conv(x), x, alpha=2), ADD_REASON, id="alpha on the other"),
        pytest.param(lambda s, x: torch.add(x, s.conv(x), alpha=2), ADD_REASON, id="alpha on the convolution"),
        pytest.param(lambda s, x: s.conv(x) + x.mean((2, 3), keepdim=True), ADD_REASON, id="broadcast"),
        pytest.param(lambda s, x: s.conv(x) + 1, ADD_REASON, id="number"),
        pytest.param(lambda s, x: s.conv(x) + s.conv.bias.reshape(4, 1, 1), ADD_REASON, id="broadcast view of a constant"),
    ],
)
def test_declines(function, reason):
    graph, report = apply_pass(net(function, conv=_conv()), IMAGE, NAME)

    assert report.fired == 0
    assert list(report.declined) == [reason]
    assert "conv2d" in ops(graph)


def test_relu_behind_an_add_that_stays():
    graph, _ = apply_pass(net(lambda s, x: F.relu(s.conv(x) + 1), conv=_conv()), IMAGE, NAME)

    assert ops(graph) == ["conv2d", "add", "relu"]


def test_chain_of_residual_blocks():
    def forward(s, x):
        for conv in s.children():
            x = F.relu(x + conv(x))
        return x

    graph, report = apply_pass(net(forward, a=_conv(), b=_conv(), c=_conv()), IMAGE, NAME)

    assert report.fired == 3
    assert ops(graph) == ["fused_conv2d"] * 3


def test_keeps_what_earlier_passes_folded():
    model = net(lambda s, x: F.relu(s.bn(s.conv(x)) + x), conv=_conv(bias=False), bn=nn.BatchNorm2d(4))
    graph, _ = apply_pass(model, IMAGE, NAME, "fold_batch_norm")

    (node,) = graph.calls()
    assert node.meta["folded"] == ("batch_norm", "add", "relu")
    assert node.meta["path"] == "conv"
