"""Which steps a graph becomes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import net
from torch import Tensor, nn

from fastcnn.engines.triton.matching import MAX_PIECES
from fastcnn.engines.triton.steps import AffineStep, AtenStep, ConvolutionStep, GlobalPoolStep, PoolStep, followers
from fastcnn.errors import BackendError
from fastcnn.kernels.convolution_problem import MAX_DESTINATIONS

from .networks import kinds, network_of


def test_a_pool_takes_in_the_bias_and_relu_behind_it():
    network = network_of(net(lambda s, x: F.relu(s.c(F.avg_pool2d(x, 3, 1, 1))), c=nn.Conv2d(4, 2, 1)))
    pool = network.steps[-1]

    assert isinstance(pool, PoolStep)
    assert pool.relu
    assert pool.bias is not None
    assert list(followers(pool))[-2:] == ["bias", "relu"]


def test_other_steps():
    def forward(s, x: Tensor) -> Tensor:
        y = F.relu(s.bn(F.max_pool2d(F.relu(s.a(x)), 2)))
        return s.fc(F.adaptive_avg_pool2d(F.silu(s.b(y)), 1).flatten(1))

    network = network_of(net(forward, a=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6), b=nn.Conv2d(6, 4, 1), fc=nn.Linear(4, 3)))

    assert kinds(network) == ["Convolution", "Pool", "Affine", "Convolution", "Aten", "GlobalPool", "Aten", "Aten"]
    assert [type(step) for step in network.steps[2:4]] == [AffineStep, ConvolutionStep]
    assert isinstance(network.steps[5], GlobalPoolStep)
    assert network.per_picture


@pytest.mark.parametrize(
    ("function", "apart"),
    [
        (lambda x: x - x.mean(0, keepdim=True), False),
        (lambda x: F.softmax(x.flatten(1), 0), False),
        (lambda x: F.softmax(x.flatten(1), 1), True),
        (lambda x: x.flip(0), False),
        (lambda x: x * 2 + torch.sigmoid(x), True),
    ],
)
def test_whether_pictures_are_kept_apart(function, apart):
    network = network_of(net(lambda s, x: function(s.a(x)), a=nn.Conv2d(4, 3, 1)))

    assert network.per_picture is apart


def test_operations_that_cannot_be_placed_are_named():
    with pytest.raises(BackendError, match=r"backend 'triton' cannot place the operation nonzero.*depends on the data; use backend='torch'"):
        network_of(net(lambda s, x: s.a(x).nonzero().float().sum() + s.a(x), a=nn.Conv2d(4, 3, 1)))


def test_aten_steps_read_what_they_must():
    network = network_of(net(lambda s, x: F.gelu(s.a(x)) + s.b(x)[:, 1:], a=nn.Conv2d(4, 3, 1), b=nn.Conv2d(4, 4, 3, padding=1)))
    aten = [step for step in network.steps if isinstance(step, AtenStep)]

    assert [len(step.reads) for step in aten][-1] == 2
    assert [start for _, start in network.views.values()] == [1]


def test_a_convolution_has_no_more_pieces_than_a_launch_has_destinations():
    assert MAX_PIECES == MAX_DESTINATIONS
