"""What depends on constants only is computed once, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 3, 8, 8)


def _standardized(s, x):
    weight = s.conv.weight
    mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
    return F.conv2d(x, (weight - mean) * torch.rsqrt(var + 1e-5), s.conv.bias)


def test_weight_standardization():
    """As in timm's `StdConv2d` (Qiao et al., Weight Standardization)."""
    graph, report = apply_pass(net(_standardized, conv=nn.Conv2d(3, 6, 3)), IMAGE, "fold_constants")

    assert report.fired > 0
    assert ops(graph) == ["conv2d"]


def test_folded_weights_take_a_batch_norm():
    model = net(lambda s, x: s.bn(_standardized(s, x)), conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(6))
    graph, report = apply_pass(model, IMAGE, "fold_batch_norm", "fold_constants")

    assert report.fired == 1
    assert ops(graph) == ["conv2d"]


def test_tensor_made_in_forward():
    graph, report = apply_pass(net(lambda s, x: s.conv(x) * torch.tensor([2.0]), conv=nn.Conv2d(3, 6, 3)), IMAGE, "fold_constants")

    assert report.fired > 0
    assert ops(graph) == ["conv2d", "mul"]


def test_values_that_depend_on_the_input_stay():
    graph, report = apply_pass(
        net(lambda s, x: s.conv(x) + s.conv.bias.reshape(-1, 1, 1) * x.mean(), conv=nn.Conv2d(3, 6, 3)), IMAGE, "fold_constants"
    )

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "mean", "mul", "add"]


def test_declines_random_numbers():
    graph, report = apply_pass(net(lambda s, x: s.conv(x) + 0 * torch.rand_like(s.conv.bias)[0], conv=nn.Conv2d(3, 6, 3)), IMAGE, "fold_constants")

    assert "not a pure function" in report.declined
    assert "rand_like" in ops(graph)


def test_declines_integers_and_several_values():
    def forward(s, x):
        indices = s.conv.bias.argsort()
        low, high = s.conv.bias.aminmax()
        return s.conv(x)[:, indices] + low + high

    _, report = apply_pass(net(forward, conv=nn.Conv2d(3, 6, 3)), IMAGE, "fold_constants")

    assert "not a floating-point value" in report.declined
