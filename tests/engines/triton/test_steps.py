"""How steps hang together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import net
from torch import nn

from fastcnn.engines.triton.steps import is_activation

from .networks import block_parts, inception_block, network_of


def test_a_view_is_read_from_the_step_behind_it():
    network = network_of(net(lambda s, x: F.gelu(s.a(x)) + s.b(x)[:, 1:], a=nn.Conv2d(4, 3, 1), b=nn.Conv2d(4, 4, 3, padding=1)))
    (view,) = network.views
    step = next(step for step in network.steps if view in step.reads)

    assert network.writers[network.base(view)] in network.sources(step)
    assert view not in network.writers
    assert network.base(network.base(view)) is network.base(view)


def test_scattered_siblings_have_one_writer():
    network = network_of(net(inception_block, **block_parts()))
    siblings = network.convolutions[0]

    assert {network.writers[piece.node] for piece in siblings.pieces} == {siblings}
    assert network.sources(siblings) == []  # the network's input


@pytest.mark.parametrize("shape", [(None, 4, 8, 8), (None, 4, None, 8), (None, 4)])
def test_activations_have_known_channels_and_sizes(shape):
    node = torch.fx.Graph().placeholder("x")
    node.meta["shape"] = shape

    assert is_activation(node) == (shape == (None, 4, 8, 8))
    assert not is_activation(3.0)
