"""BatchNorm goes into the layer before it, exactly, and only where it may."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 4, 8, 8)


def _conv_bn(s, x):
    return s.bn(s.conv(x))


@pytest.mark.parametrize(
    ("layer", "norm", "example"),
    [
        pytest.param(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), IMAGE, id="conv2d"),
        pytest.param(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), IMAGE, id="without bias"),
        pytest.param(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), nn.BatchNorm2d(6, eps=0.1), IMAGE, id="strided, padded, dilated"),
        pytest.param(nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), IMAGE, id="padding by name"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), IMAGE, id="grouped"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), IMAGE, id="depthwise"),
        pytest.param(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), images(2, 4, 8), id="conv1d"),
        pytest.param(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), images(2, 4, 5, 6, 7), id="conv3d"),
        pytest.param(nn.Linear(4, 6), nn.BatchNorm1d(6), images(2, 4), id="linear"),
        pytest.param(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), images(2, 4), id="linear without bias"),
    ],
)
def test_fires(layer, norm, example):
    graph, report = apply_pass(net(_conv_bn, conv=layer, bn=norm), example, "fold_batch_norm")

    assert report.fired == 1
    assert not report.declined
    (node,) = graph.calls()
    assert "batch_norm" not in ops(graph)
    assert node.meta["folded"] == ("batch_norm",)
    assert node.meta["path"] == "conv"


def test_norm_without_weight_and_bias():
    model = net(_conv_bn, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6))
    model.bn.weight = model.bn.bias = None
    graph, report = apply_pass(model, IMAGE, "fold_batch_norm")

    assert report.fired == 1
    assert ops(graph) == ["conv2d"]


def test_folded_weight_is_rounded_once():
    model = net(_conv_bn, conv=nn.Conv2d(4, 6, 3, bias=False), bn=nn.BatchNorm2d(6, eps=1e-3))
    graph, _ = apply_pass(model, IMAGE, "fold_batch_norm")
    graph.cast_constants(torch.float32)

    scale = model.bn.weight.double() / (model.bn.running_var.double() + 1e-3).sqrt()
    weight, bias = graph.constants().values()
    torch.testing.assert_close(weight, (model.conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float(), rtol=2**-23, atol=0)
    torch.testing.assert_close(bias, (model.bn.bias.double() - model.bn.running_mean.double() * scale).float(), rtol=2**-23, atol=2**-25)


def test_one_convolution_with_two_norms():
    """A module called twice: each call gets weights of its own."""
    model = net(lambda s, x: s.bn1(s.conv(x)) + s.bn2(s.conv(2 * x)), conv=nn.Conv2d(4, 6, 3), bn1=nn.BatchNorm2d(6), bn2=nn.BatchNorm2d(6))
    torch.nn.init.uniform_(model.bn2.bias, -3, 3)
    graph, report = apply_pass(model, IMAGE, "fold_batch_norm")

    assert report.fired == 2
    assert len(graph.constants()) == 4


def test_two_norms_in_a_row():
    model = net(lambda s, x: s.bn2(s.bn1(s.conv(x))), conv=nn.Conv2d(4, 6, 3), bn1=nn.BatchNorm2d(6), bn2=nn.BatchNorm2d(6))
    graph, report = apply_pass(model, IMAGE, "fold_batch_norm")

    assert report.fired == 2
    assert ops(graph) == ["conv2d"]


def _used_twice(s, x):
    y = s.conv(x)
    return s.bn(y) + y


def _returned(s, x):
    y = s.conv(x)
    return s.bn(y), y


@pytest.mark.parametrize(
    ("function", "conv", "example", "reason"),
    [
        pytest.param(_used_twice, nn.Conv2d(4, 6, 3), IMAGE, "used elsewhere", id="output used twice"),
        pytest.param(_returned, nn.Conv2d(4, 6, 3), IMAGE, "used elsewhere", id="output returned"),
        pytest.param(
            lambda s, x: F.batch_norm(s.conv(x), None, None, training=True), nn.Conv2d(4, 6, 3), IMAGE, "statistics of the batch", id="training mode"
        ),
        pytest.param(_conv_bn, nn.ConvTranspose2d(4, 6, 3), IMAGE, "follows conv_transpose2d", id="transposed"),
        pytest.param(lambda s, x: s.bn(F.relu(s.conv(x))), nn.Conv2d(4, 6, 3), IMAGE, "follows relu", id="ReLU between"),
        pytest.param(lambda s, x: s.bn(F.conv2d(x, s.conv.weight * x.mean())), nn.Conv2d(4, 6, 3), IMAGE, "weights are computed", id="computed"),
        pytest.param(lambda s, x: s.bn(s.conv(x)[..., None]), nn.Linear(4, 6), images(2, 3, 4), "follows unsqueeze", id="view between"),
    ],
)
def test_declines(function, conv, example, reason):
    norm = nn.BatchNorm2d(6) if not isinstance(conv, nn.Linear) else nn.BatchNorm2d(3)
    graph, report = apply_pass(net(function, conv=conv, bn=norm), example, "fold_batch_norm")

    assert report.fired == 0
    assert [reason in text for text in report.declined] == [True], report
    assert "batch_norm" in ops(graph)


def test_declines_over_another_dimension():
    """After a linear layer over [N, T, features], BatchNorm1d runs over T."""
    model = net(lambda s, x: s.bn(s.fc(x)), fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3))
    _, report = apply_pass(model, images(2, 3, 4), "fold_batch_norm")

    assert list(report.declined) == ["BatchNorm runs over another dimension than the output channels"]


def test_norm_without_a_layer_before_it():
    _, report = apply_pass(net(lambda s, x: s.bn(x), bn=nn.BatchNorm2d(4)), IMAGE, "fold_batch_norm")

    assert list(report.declined) == ["BatchNorm follows placeholder"]
