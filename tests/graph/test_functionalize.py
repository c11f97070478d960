"""In-place code gives a graph without in-place calls that returns what eager PyTorch returns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graph_support import assert_same_function, images, net, ops
from torch import nn

from fastcnn.graph import functionalize as functionalize_module
from fastcnn.graph.capture import capture

IMAGE = images(2, 4, 6, 6)


def _relu_on_fresh(s, x):
    return s.conv(x).relu_()


def _residual(s, x):
    identity = x
    out = s.conv(x)
    out += identity
    return F.relu(out, inplace=True)


def _several_in_a_row(s, x):
    return s.conv(x).mul_(2).add_(1).clamp_(-1, 1).sub_(x)


def _readers_before_and_after(s, x):
    y = s.conv(x)
    before = y * 3
    y.relu_()
    middle = y * 5
    y.add_(1)
    return before, middle, y * 7, y


def _name_of_the_old_value(s, x):
    """`y`, `z` and `w` are one tensor."""
    y = s.conv(x)
    z = y.relu_()
    w = z.add_(1)
    return y, z, w, y + z


def _write_through_the_first_name(s, x):
    y = s.conv(x)
    z = y.relu_()
    y.mul_(2)
    return z * 3


def _dropout_is_an_alias(s, x):
    y = F.dropout(s.conv(x), 0.5, training=False)
    return y.relu_() + 1


def _relu_then_dropout_and_linear(s, x):
    return F.dropout(F.relu(s.conv(x), inplace=True), training=False).flatten(1).mul(2)


SIMPLE = [
    _relu_on_fresh,
    _residual,
    _several_in_a_row,
    _readers_before_and_after,
    _name_of_the_old_value,
    _write_through_the_first_name,
    _relu_then_dropout_and_linear,
]


def _view_sees_the_write(s, x):
    y = s.conv(x)
    view = y.flatten(1)
    y.relu_()
    return view * 2, y


def _write_through_a_view(s, x):
    y = s.conv(x)
    y.flatten(1).relu_()
    return y * 2


def _view_of_an_inplace_result(s, x):
    y = s.conv(x)
    z = y.relu_()
    view = z.view(z.shape[0], -1)
    y.add_(1)
    return view * 3


def _slice_assignment(s, x):
    y = s.conv(x)
    y[:, 1:3] = 0
    y[:, 0] += 1
    return y


def _write_into_chunk(s, x):
    a, b = s.conv(x).chunk(2, 1)
    a.relu_()
    return torch.cat([a, b], 1)


def _write_into_the_input(s, x):
    x.mul_(2)
    return s.conv(x) + x


def _write_through_a_view_of_the_input(s, x):
    x[:, 0].zero_()
    return s.conv(x)


def _batch_norm_and_view(s, x):
    y = s.bn(s.conv(x))
    y.flatten(1).add_(1)
    return F.relu(y)


def _dtype_of_the_written_value(s, x):
    """In place, the narrower dtype stays; `add` would give float64."""
    y = s.conv(x).float()
    y.add_(s.wide)
    return y * 1.0


def _output_argument(s, x):
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    return s.conv(y)


GENERAL = [
    _view_sees_the_write,
    _write_through_a_view,
    _view_of_an_inplace_result,
    _slice_assignment,
    _write_into_chunk,
    _write_into_the_input,
    _write_through_a_view_of_the_input,
    _batch_norm_and_view,
    _dropout_is_an_alias,
]


def _model(function):
    return net(function, conv=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4), wide=torch.tensor([1 / 3], dtype=torch.float64))


@pytest.fixture
def general_road(monkeypatch):
    """Counts programs that took the general road, `run_decompositions`."""
    taken = []
    restore = functionalize_module._restore_batch_norm
    monkeypatch.setattr(functionalize_module, "_restore_batch_norm", lambda graph: (taken.append(1), restore(graph)))
    return taken


def _assert_pure(graph):
    assert [name for name in ops(graph) if name.endswith("_")] == []
    assert "copy_" not in ops(graph)


@pytest.mark.parametrize("function", SIMPLE, ids=lambda function: function.__name__)
def test_simple(function, general_road):
    model = _model(function)
    captured = capture(model, IMAGE)

    assert not general_road
    _assert_pure(captured)
    assert_same_function(captured, model, IMAGE)


@pytest.mark.parametrize("function", GENERAL, ids=lambda function: function.__name__)
def test_general(function, general_road):
    model = _model(function)
    captured = capture(model, IMAGE)

    assert general_road
    _assert_pure(captured)
    assert_same_function(captured, model, IMAGE)


def test_batch_norm_keeps_its_plain_form():
    assert "batch_norm" in ops(capture(_model(_batch_norm_and_view), IMAGE))


@pytest.mark.parametrize("function", [_dtype_of_the_written_value, _output_argument], ids=lambda function: function.__name__)
def test_other_inplace_forms(function):
    model = _model(function)
    captured = capture(model, IMAGE)

    output = captured.module(IMAGE)[0]
    assert output.dtype == model(IMAGE).dtype
    torch.testing.assert_close(output, model(IMAGE))


def test_input_is_not_written_to():
    """Eager PyTorch changes the caller's tensor; the graph only returns what eager PyTorch returns."""
    captured = capture(_model(_write_into_the_input), IMAGE)
    x = IMAGE.clone()
    captured.module(x)

    torch.testing.assert_close(x, IMAGE, rtol=0, atol=0)
