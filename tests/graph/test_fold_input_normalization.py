"""Per-channel normalisation goes into the first convolution where that is exact."""

from __future__ import annotations

import pytest
import torch
from graph_support import apply_pass, images, net, ops
from support import randomize_weights
from torch import nn

import fastcnn
from fastcnn.graph.capture import capture
from fastcnn.graph.passes import run_passes

IMAGE = images(2, 3, 8, 8)
NUMBERS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MEAN, STD = torch.tensor(NUMBERS)
NAME = "fold_input_normalization"


def _standardize(s, x):
    return s.conv((x - s.mean) / s.std)


def _constants(shape=(3, 1, 1)):
    return {"mean": MEAN.reshape(shape), "std": STD.reshape(shape)}


def _per_channel(s, x):
    """torchvision's `transform_input`."""
    channels = [torch.unsqueeze(x[:, i], 1) * (std / 0.5) + (mean - 0.5) / 0.5 for i, (mean, std) in enumerate(zip(*NUMBERS, strict=True))]
    return s.conv(torch.cat(channels, 1))


@pytest.mark.parametrize(
    ("function", "conv", "constants"),
    [
        pytest.param(_standardize, nn.Conv2d(3, 6, 3), _constants(), id="constant tensors"),
        pytest.param(_standardize, nn.Conv2d(3, 6, 3, stride=2, dilation=2, bias=False), _constants((1, 3, 1, 1)), id="four dimensions, no bias"),
        pytest.param(_per_channel, nn.Conv2d(3, 6, 3), {}, id="channel by channel"),
        pytest.param(lambda s, x: s.conv(2 * x - 1), nn.Conv2d(3, 6, 3), {}, id="numbers"),
        pytest.param(lambda s, x: s.conv(1 + x.sub(0.5).div(0.25).add(3)), nn.Conv2d(3, 6, 3), {}, id="a chain"),
        pytest.param(lambda s, x: s.conv(torch.stack([x[:, 2] * 2, x[:, 1] + 1, x[:, 0]], 1)), nn.Conv2d(3, 6, 3), {}, id="BGR by stack"),
        pytest.param(lambda s, x: s.conv(torch.cat([x[:, 1:], x[:, :2] - 1], 1)), nn.Conv2d(4, 6, 3), {}, id="slices, one channel twice"),
        pytest.param(lambda s, x: s.conv(x / s.std), nn.Conv2d(3, 6, 3, padding=1), {"std": STD.reshape(3, 1, 1)}, id="pure scale, padded"),
        pytest.param(lambda s, x: s.conv(x * 1.0 - 0.0), nn.Conv2d(3, 6, 3, padding=1), {}, id="zero shift, padded"),
    ],
)
def test_fires(function, conv, constants):
    graph, report = apply_pass(net(function, conv=conv, **constants), IMAGE, NAME)

    assert report.fired == 1
    assert not report.declined
    assert ops(graph) == ["conv2d"]
    assert next(graph.calls()).meta["folded"] == ("input_normalization",)


def test_each_convolution_that_reads_the_normalized_input():
    def forward(s, x):
        x = (x - s.mean) / s.std
        return s.a(x), s.b(x), x.mean()

    graph, report = apply_pass(net(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 5), **_constants()), IMAGE, NAME)

    assert report.fired == 2
    assert ops(graph).count("conv2d") == 2


@pytest.mark.parametrize(
    ("function", "conv", "reason"),
    [
        pytest.param(lambda s, x: s.conv(x - 1), nn.Conv2d(3, 6, 3, padding=1), "pads", id="shift, padded"),
        pytest.param(lambda s, x: s.conv(x - 1), nn.Conv2d(3, 6, 3, groups=3), "grouped", id="grouped"),
        pytest.param(lambda s, x: s.conv(x[:, :2] * 2), nn.Conv2d(2, 6, 3), "not read", id="a channel left out"),
        pytest.param(lambda s, x: torch.conv2d(x * 2, s.conv.weight * x.mean()), nn.Conv2d(3, 6, 3), "weights are computed", id="computed weights"),
    ],
)
def test_declines(function, conv, reason):
    graph, report = apply_pass(net(function, conv=conv), IMAGE, NAME)

    assert report.fired == 0
    assert [reason in text for text in report.declined] == [True], report
    assert len(ops(graph)) > 1


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, x: s.conv(x), id="nothing to fold"),
        pytest.param(lambda s, x: s.conv(x * x), id="not affine"),
        pytest.param(lambda s, x: s.conv(x - x.mean()), id="depends on the picture"),
        pytest.param(lambda s, x: s.conv(1 - x), id="reversed subtraction"),
        pytest.param(lambda s, x: s.conv(x[..., 1:]), id="crop"),
        pytest.param(lambda s, x: s.conv(x * s.ramp), id="varies over the picture"),
        pytest.param(lambda s, x: s.conv(torch.add(x, 1, alpha=2)), id="alpha"),
        pytest.param(lambda s, x: s.conv(x[: x.shape[0]] * 2), id="slice up to a dynamic size"),
    ],
)
def test_leaves_alone_what_is_no_normalization(function):
    model = net(function, conv=nn.Conv2d(3, 6, 3), ramp=torch.linspace(0, 1, 8))
    _, report = apply_pass(model, IMAGE, NAME)

    # A full slice, and an addition whose alpha was multiplied in while capturing, may fold: exactness is what `apply_pass` checked.
    assert report.fired <= 1
    assert not report.declined


def test_division_by_zero_stays_as_it_is():
    model = net(lambda s, x: s.conv(x / s.zero), conv=nn.Conv2d(3, 6, 3), zero=torch.zeros(1))
    graph, (report,) = run_passes(capture(model, IMAGE), (NAME,))

    assert report.fired == 0
    assert ops(graph) == ["div", "conv2d"]


def test_inception_v3_folds():
    model = randomize_weights(fastcnn.create_model("inception_v3", transform_input=True))
    _, report = apply_pass(model, images(1, 3, 75, 75), NAME, "fold_batch_norm")

    assert report.fired == 1
    assert not report.declined


def test_googlenet_declines():
    model = randomize_weights(fastcnn.create_model("googlenet", transform_input=True))
    _, report = apply_pass(model, images(1, 3, 64, 64), NAME, "fold_batch_norm")

    assert report.fired == 0
    assert list(report.declined) == ["the first convolution pads: a shifted border would not be zero"]


def test_torchvision_inception_v3_folds():
    """Its own `transform_input`, in front of its own first convolution."""
    torchvision = pytest.importorskip("torchvision")
    inception = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True, aux_logits=False)
    model = net(lambda s, x: s.conv(inception._transform_input(x)), conv=inception.Conv2d_1a_3x3)
    graph, report = apply_pass(model, IMAGE, NAME, "fold_batch_norm")

    assert report.fired == 1
    assert ops(graph) == ["conv2d", "relu"]
