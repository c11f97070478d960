"""Where the activations of a network lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graph_support import net
from torch import Tensor, nn

from fastcnn.engines.triton.placement import place_activations
from fastcnn.engines.triton.steps import ConcatStep

from .networks import block_parts, inception_block, kinds, network_of


def test_an_inception_block_is_written_in_place():
    network = network_of(net(inception_block, **block_parts()))
    placement = place_activations(network)

    assert kinds(network) == ["Convolution", "Convolution", "Convolution", "Pool", "Pool", "Concat"]
    (concat,) = (step for step in network.steps if isinstance(step, ConcatStep))
    assert placement.late[concat] == ()
    places = [placement.places[member] for member in concat.reads]
    assert [(place.first, place.channels) for place in places] == [(0, 3), (3, 5), (8, 2), (10, 4)]
    assert {place.buffer for place in places} == {placement.places[concat.node].buffer}
    siblings = network.convolutions[0]
    assert [(piece.start, piece.stop) for piece in siblings.pieces] == [(0, 3), (3, 5)]
    assert placement.places[siblings.pieces[0].node].buffer is not placement.places[siblings.pieces[1].node].buffer


def test_a_concat_within_a_concat_is_a_slice_of_it():
    def forward(s, x: Tensor) -> Tensor:
        inner = torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], 1)
        return torch.cat([F.relu(s.c(x)), inner], 1)

    network = network_of(net(forward, a=nn.Conv2d(4, 3, 3, padding=1), b=nn.Conv2d(4, 2, 3, padding=1), c=nn.Conv2d(4, 1, 3, padding=1)))
    placement = place_activations(network)
    inner, outer = (step for step in network.steps if isinstance(step, ConcatStep))

    assert set(placement.late.values()) == {()}
    assert placement.places[inner.node].buffer is placement.places[outer.node].buffer
    assert (placement.places[inner.node].first, placement.places[inner.node].channels) == (1, 5)


def test_prefixes_of_a_dense_block_are_parts_of_one_buffer():
    def forward(s, x: Tensor) -> Tensor:
        features = [F.relu(s.stem(x))]
        for layer in (s.a, s.b, s.c):
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)

    parts = {name: nn.Conv2d(channels, 2, 3, padding=1) for name, channels in (("stem", 4), ("a", 2), ("b", 4), ("c", 6))}
    network = network_of(net(forward, **parts))
    placement = place_activations(network)
    concats = [step for step in network.steps if isinstance(step, ConcatStep)]

    assert len(concats) >= 3
    assert all(late == () for late in placement.late.values())
    assert len({placement.places[step.node].buffer for step in concats}) == 1


def test_what_stands_in_two_concats_or_twice_in_one_is_copied():
    def forward(s, x: Tensor) -> Tensor:
        a, b = F.relu(s.a(x)), F.relu(s.b(x))
        return s.d(torch.cat([a, b, a], 1)) + s.e(torch.cat([b, a], 1))

    parts = {"a": nn.Conv2d(4, 3, 3), "b": nn.Conv2d(4, 2, 3), "d": nn.Conv2d(8, 2, 3), "e": nn.Conv2d(5, 2, 3)}
    network = network_of(net(forward, **parts))
    placement = place_activations(network)

    assert sorted(len(late) for late in placement.late.values()) in ([0, 3], [1, 2])


def test_a_library_brings_its_own_memory():
    network = network_of(net(inception_block, **block_parts()))
    siblings, last = network.convolutions[0], network.convolutions[1]
    placement = place_activations(network, external={siblings, last})
    (concat,) = (step for step in network.steps if isinstance(step, ConcatStep))

    assert placement.late[concat] == (0, 1)
    first, second = (placement.places[piece.node] for piece in siblings.pieces)
    assert first.buffer is second.buffer
    assert first.buffer.external


def test_out_of_place_every_member_is_late():
    network = network_of(net(inception_block, **block_parts()))
    (late,) = place_activations(network, in_place=False).late.values()

    assert late == (0, 1, 2, 3)
