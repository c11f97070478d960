"""Which steps a graph becomes, and where their pictures lie."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from torch import Tensor, nn

from fastcnn.engines.triton.placement import place_pictures
from fastcnn.engines.triton.steps import (
    AffineStep,
    AtenStep,
    ConcatStep,
    ConvolutionStep,
    GlobalPoolStep,
    Network,
    PoolStep,
    build_network,
    followers,
)
from fastcnn.errors import BackendError
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.target import Target

PASSES = [name for name in STANDARD_PASSES if name != "pool_to_depthwise_convolution"]


def network_of(model: nn.Module, channels: int = 4, size: int = 8) -> Network:
    fused, _ = run_passes(capture(model, images(2, channels, size, size)), [*PASSES, "merge_sibling_projections", "fuse_convolution_epilogue"])
    fused.cast_constants(torch.float32)
    return build_network(fused, Target(torch.device("cpu"), torch.float32))


def kinds(network: Network) -> list[str]:
    return [type(step).__name__.removesuffix("Step") for step in network.steps]


def inception_block(s, x: Tensor) -> Tensor:
    branches = [F.relu(s.a(x)), F.relu(s.b2(F.relu(s.b1(x)))), F.relu(s.c(F.avg_pool2d(x, 3, 1, 1))), F.max_pool2d(x, 3, 1, 1)]
    return torch.cat(branches, 1)


def block_parts() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(4, 3, 1), "b1": nn.Conv2d(4, 2, 1), "b2": nn.Conv2d(2, 5, 3, padding=1), "c": nn.Conv2d(4, 2, 1)}


def test_an_inception_block_is_written_in_place():
    network = network_of(net(inception_block, **block_parts()))
    placement = place_pictures(network)

    assert kinds(network) == ["Convolution", "Convolution", "Convolution", "Pool", "Pool", "Concat"]
    (concat,) = (step for step in network.steps if isinstance(step, ConcatStep))
    assert placement.late[concat] == ()
    places = [placement.places[member] for member in concat.reads]
    assert [(place.first, place.channels) for place in places] == [(0, 3), (3, 5), (8, 2), (10, 4)]
    assert {place.buffer for place in places} == {placement.places[concat.node].buffer}
    siblings = network.convolutions[0]
    assert [(piece.start, piece.stop) for piece in siblings.pieces] == [(0, 3), (3, 5)]
    assert placement.places[siblings.pieces[0].node].buffer is not placement.places[siblings.pieces[1].node].buffer


def test_a_pool_takes_in_the_bias_and_relu_behind_it():
    network = network_of(net(lambda s, x: F.relu(s.c(F.avg_pool2d(x, 3, 1, 1))), c=nn.Conv2d(4, 2, 1)))
    pool = network.steps[-1]

    assert isinstance(pool, PoolStep)
    assert pool.relu
    assert pool.bias is not None
    assert list(followers(pool))[-2:] == ["bias", "relu"]


def test_a_concat_within_a_concat_is_a_slice_of_it():
    def forward(s, x: Tensor) -> Tensor:
        inner = torch.cat([F.relu(s.a(x)), F.relu(s.b(x))], 1)
        return torch.cat([F.relu(s.c(x)), inner], 1)

    network = network_of(net(forward, a=nn.Conv2d(4, 3, 3, padding=1), b=nn.Conv2d(4, 2, 3, padding=1), c=nn.Conv2d(4, 1, 3, padding=1)))
    placement = place_pictures(network)
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
    placement = place_pictures(network)
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
    placement = place_pictures(network)

    assert sorted(len(late) for late in placement.late.values()) in ([0, 3], [1, 2])


def test_a_library_brings_its_own_memory():
    network = network_of(net(inception_block, **block_parts()))
    siblings, last = network.convolutions[0], network.convolutions[1]
    placement = place_pictures(network, external={siblings, last})
    (concat,) = (step for step in network.steps if isinstance(step, ConcatStep))

    assert placement.late[concat] == (0, 1)
    first, second = (placement.places[piece.node] for piece in siblings.pieces)
    assert first.buffer is second.buffer
    assert first.buffer.external


def test_out_of_place_every_member_is_late():
    network = network_of(net(inception_block, **block_parts()))
    (late,) = place_pictures(network, in_place=False).late.values()

    assert late == (0, 1, 2, 3)


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
