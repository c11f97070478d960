"""Dropout leaves the graph."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 4, 8, 8)


@pytest.mark.parametrize(
    "dropout", [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.3), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2)]
)
def test_fires(dropout):
    model = net(lambda s, x: F.relu(s.drop(s.conv(x))), conv=nn.Conv2d(4, 6, 3), drop=dropout)
    graph, report = apply_pass(model, IMAGE, "drop_dropout")

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "relu"]


def test_lets_a_batch_norm_fold():
    model = net(lambda s, x: s.bn(s.drop(s.conv(x))), conv=nn.Conv2d(4, 6, 3), drop=nn.Dropout(), bn=nn.BatchNorm2d(6))
    graph, _ = apply_pass(model, IMAGE, "fold_batch_norm", "drop_dropout")

    assert ops(graph) == ["conv2d"]


def test_as_the_output():
    graph, report = apply_pass(net(lambda s, x: s.drop(s.conv(x)), conv=nn.Conv2d(4, 6, 3), drop=nn.Dropout()), IMAGE, "drop_dropout")

    assert report.fired == 1
    assert ops(graph) == ["conv2d"]


def test_declines_in_training_mode():
    """Written as a function that always drops; with p = 0 so that there is a value to compare."""
    graph, report = apply_pass(net(lambda s, x: F.dropout(s.conv(x), 0.0, training=True), conv=nn.Conv2d(4, 6, 3)), IMAGE, "drop_dropout")

    assert report.fired == 0
    assert list(report.declined) == ["dropout in training mode"]
    assert "dropout" in ops(graph)
