"""1×1 convolutions of one value become one."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from graph_support import apply_pass, images, net, ops
from torch import nn

IMAGE = images(2, 8, 6, 6)
NAME = "merge_sibling_projections"


def _all(s, x):
    return tuple(module(x) for module in s.children())


def test_three_siblings():
    model = net(_all, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 3, 1), c=nn.Conv2d(8, 1, 1))
    graph, report = apply_pass(model, IMAGE, NAME)

    assert report.fired == 1
    assert not report.declined
    assert ops(graph) == ["conv2d", "slice", "slice", "slice"]
    merged, *pieces = graph.calls()
    assert merged.meta["shape"] == (None, 8, 6, 6)
    assert merged.meta["path"] == "a+b+c"
    assert merged.meta["folded"] == ("3 siblings",)
    assert [piece.meta["shape"][1] for piece in pieces] == [4, 3, 1]


def test_some_without_bias():
    _, report = apply_pass(net(_all, a=nn.Conv2d(8, 4, 1, bias=False), b=nn.Conv2d(8, 3, 1)), IMAGE, NAME)

    assert report.fired == 1


def test_relu_of_all_siblings_is_merged_too():
    model = net(lambda s, x: tuple(F.relu(y) for y in _all(s, x)), a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 3, 1))
    graph, report = apply_pass(model, IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "relu", "slice", "slice"]


def test_two_groups_by_what_follows():
    def forward(s, x):
        return F.relu(s.a(x)), s.b(x), F.relu(s.c(x)), s.d(x)

    convolutions = {name: nn.Conv2d(8, 2, 1) for name in "abcd"}
    graph, report = apply_pass(net(forward, **convolutions), IMAGE, NAME)

    assert report.fired == 2
    assert sorted(node.meta["path"] for node in graph.calls() if node.meta["folded"] == ("2 siblings",) and "conv2d" in str(node.target)) == [
        "a+c",
        "b+d",
    ]


def test_siblings_behind_siblings():
    def forward(s, x):
        x = F.relu(s.stem(x))
        return s.a(x), s.b(x)

    _, report = apply_pass(net(forward, stem=nn.Conv2d(8, 6, 1), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1)), IMAGE, NAME)

    assert report.fired == 1


def test_a_larger_convolution_of_the_same_value_stays():
    graph, report = apply_pass(net(_all, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(8, 4, 3)), IMAGE, NAME)

    assert report.fired == 1
    assert ops(graph).count("conv2d") == 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        pytest.param(nn.Conv2d(8, 4, 1, stride=2), "a 1×1 sibling has a stride, padding, groups or computed weights", id="stride"),
        pytest.param(nn.Conv2d(8, 4, 1, padding=1), "a 1×1 sibling has a stride, padding, groups or computed weights", id="padding"),
        pytest.param(nn.Conv2d(8, 4, 1, groups=2), "a 1×1 sibling has a stride, padding, groups or computed weights", id="groups"),
        pytest.param(nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()), "siblings differ in what follows them", id="ReLU behind one"),
    ],
)
def test_declines(other, reason):
    graph, report = apply_pass(net(_all, a=nn.Conv2d(8, 4, 1), b=other), IMAGE, NAME)

    assert report.fired == 0
    assert reason in report.declined
    assert ops(graph).count("conv2d") == 2


@pytest.mark.parametrize("strides", [(2, 2), (1, 2)])
def test_strided_siblings_are_left_alone(strides):
    _, report = apply_pass(net(_all, a=nn.Conv2d(8, 4, 1, stride=strides[0]), b=nn.Conv2d(8, 4, 1, stride=strides[1])), IMAGE, NAME)

    assert report.fired == 0
    assert sum(report.declined.values()) == strides.count(2)


def test_no_projection_is_no_reason_to_decline():
    _, report = apply_pass(net(_all, a=nn.Conv2d(8, 4, 3), b=nn.Conv2d(8, 4, 1)), IMAGE, NAME)

    assert report.fired == 0
    assert not report.declined
