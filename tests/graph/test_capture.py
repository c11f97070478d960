"""Any classifier becomes a graph with a dynamic batch, or one line that says why not."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_support import Net, assert_same_function, images, net, ops
from torch import nn

import fastcnn
from fastcnn.errors import CaptureError, InputError
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import Convolution, aten
from fastcnn.graph.output_structure import packer

IMAGE = images(2, 3, 8, 8)


def _conv(**options):
    return nn.Conv2d(3, 4, 3, **options)


def _head(s, x):
    return s.fc(F.adaptive_avg_pool2d(F.relu(s.conv(x)), 1).flatten(1))


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batch_is_dynamic_whatever_the_example(batch):
    """Also where the batch equals the number of channels, or a side."""
    model = net(_head, conv=_conv(), fc=nn.Linear(4, 5))
    captured = capture(model, images(batch, 3, 8, 8))

    assert captured.input_shape == (None, 3, 8, 8)
    assert captured.input_dtype == torch.float32
    for size in (1, 2, 5, 7):
        x = images(size, 3, 8, 8, seed=size)
        torch.testing.assert_close(captured.module(x)[0], model(x))


def test_nodes_know_shape_dtype_and_path():
    captured = capture(net(_head, conv=_conv(), fc=nn.Linear(4, 5)), IMAGE)

    rows = [(node.meta["path"], node.meta["shape"], node.meta["dtype"]) for node in captured.calls()]
    assert rows[0] == ("conv", (None, 4, 6, 6), torch.float32)
    assert rows[-1] == ("fc", (None, 5), torch.float32)
    assert set(captured.constants()) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


def test_info_of_the_model():
    assert capture(fastcnn.create_model("simple_cnn"), images(1, 1, 28, 28)).info["name"] == "simple_cnn"
    assert capture(net(_head, conv=_conv(), fc=nn.Linear(4, 5)), IMAGE).info == {"name": "net"}


def test_copy_is_independent():
    captured = capture(net(_head, conv=_conv(), fc=nn.Linear(4, 5)), IMAGE)
    other = captured.copy()
    other.cast_constants(torch.float64)

    assert captured.input_dtype == torch.float32
    assert captured.constants()["conv.weight"].dtype == torch.float32
    assert ops(other) == ops(captured)


@dataclasses.dataclass
class Described:
    main: torch.Tensor
    others: list[torch.Tensor | None]


class Pair(NamedTuple):
    main: torch.Tensor
    aux: torch.Tensor


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda a, b: (a, b), id="tuple"),
        pytest.param(lambda a, b: [a, b], id="list"),
        pytest.param(lambda a, b: {"out": a, "aux": b}, id="dict"),
        pytest.param(lambda a, b: OrderedDict(out=a, aux=b), id="ordered dict"),
        pytest.param(Pair, id="named tuple"),
        pytest.param(lambda a, b: {"x": [a, (b, {"again": a})], "y": Pair(b, b)}, id="nested"),
        pytest.param(lambda a, b: (a,), id="tuple of one"),
        pytest.param(lambda a, b: {"out": a, "aux": None}, id="None"),
        pytest.param(lambda a, b: Described(a, [None, b]), id="dataclass"),
    ],
)
def test_structure_of_outputs(pack):
    model = net(lambda s, x: pack(s.conv(x), x + 1), conv=_conv())
    captured = capture(model, IMAGE)
    want, packed = model(IMAGE), packer(captured.output_spec)(captured.module(IMAGE))

    assert type(packed) is type(want)
    if isinstance(want, Described):
        packed, want = vars(packed), vars(want)
    torch.testing.assert_close(packed, want, rtol=0, atol=0)


@pytest.mark.parametrize("forward", [lambda s, x: x, lambda s, x: s.conv.bias, lambda s, x: (x.mean(), s.conv(x))], ids=["input", "weight", "scalar"])
def test_unusual_outputs(forward):
    assert_same_function(capture(net(forward, conv=_conv()), IMAGE), net(forward, conv=_conv()), IMAGE)


def test_optional_arguments_keep_their_defaults():
    class WithOptions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = _conv()

        def forward(self, x, mask=None, double=False):
            return self.conv(x) * (2 if double else 1)

    model = WithOptions().eval()
    torch.testing.assert_close(capture(model, IMAGE).module(IMAGE)[0], model(IMAGE))


def test_original_is_untouched():
    model = net(lambda s, x: s.bn(s.conv(x)).relu_(), conv=_conv(), bn=nn.BatchNorm2d(4))
    calls = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    before, requires = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    identities = [id(p) for p in model.parameters()]
    example = IMAGE.clone()

    captured = capture(model, example)
    captured.cast_constants(torch.float32)
    for tensor in captured.constants().values():
        tensor.zero_()

    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(example, IMAGE, rtol=0, atol=0)
    assert [id(p) for p in model.parameters()] == identities
    assert [p.requires_grad for p in model.parameters()] == requires
    calls.clear()
    model.train()
    model(example).sum().backward()
    assert calls == [1]
    assert model.conv.weight.grad is not None


def test_later_changes_of_the_original_do_not_reach_cast_constants():
    model = net(_head, conv=_conv(), fc=nn.Linear(4, 5))
    captured = capture(model, IMAGE)
    captured.cast_constants(torch.float32)
    want = captured.module(IMAGE)[0].clone()
    with torch.no_grad():
        model.conv.weight.zero_()

    torch.testing.assert_close(captured.module(IMAGE)[0], want, rtol=0, atol=0)


# -- errors ------------------------------------------------------------------------------------------------------------


def _branch_on_data(s, x):
    y = s.conv(x)
    if y.sum() > 0:
        y = y + 1
    return y


def _numpy(s, x):
    return torch.from_numpy(np.abs(s.conv(x).detach().numpy()))


def _fixed_view(s, x):
    return s.conv(x).view(2, -1)


def _loop_over_batch(s, x):
    return torch.stack([s.conv(picture[None])[0] for picture in x])


def _python_condition(s, x):
    return s.conv(x) if len(x) == 2 else x


def _four_rows(s, x):
    return s.conv(x).view(4, -1)


def _fails(s, x):
    raise ValueError("first line\nsecond line")


def _cond(s, x):
    return torch.cond(x.mean() > 0, lambda y: y * 2, lambda y: y - 1, (s.conv(x),))


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        pytest.param(_branch_on_data, ["if y.sum() > 0:", "test_capture.py:", "data-dependent"], id="control flow"),
        pytest.param(_numpy, ["np.abs(s.conv(x).detach().numpy())", "numpy"], id="numpy"),
        pytest.param(_fixed_view, ["aten.view", "s.conv(x).view(2, -1)", "every batch size"], id="view"),
        pytest.param(_four_rows, ["aten.view", "s.conv(x).view(4, -1)", "every batch size"], id="view of four rows"),
        pytest.param(_loop_over_batch, ["for picture in x", "every batch size"], id="loop"),
        pytest.param(_python_condition, ["len(x) == 2", "every batch size"], id="condition"),
        pytest.param(_fails, ["raise ValueError", "first line"], id="own error"),
        pytest.param(lambda s, x: s.conv(torch.cat([x, x], 1)), ["aten.conv", "s.conv(torch.cat", "3 channels"], id="wrong channels"),
        pytest.param(lambda s, x: (s.conv(x), x.shape[0]), ["a SymInt"], id="number among outputs"),
        pytest.param(lambda s, x: (s.conv(x), "label"), ["'label'"], id="text among outputs"),
        pytest.param(_cond, ["torch.cond", "torch.where"], id="cond"),
        pytest.param(lambda s, x: torch.vmap(lambda picture: picture * 2)(s.conv(x)), ["torch.vmap", "whole batch"], id="vmap"),
        pytest.param(lambda s, x: object(), ["object"], id="foreign container"),
        pytest.param(lambda s, x: 3.0, ["3.0"], id="number"),
    ],
)
def test_errors_are_one_line_and_name_the_place(function, parts, capfd):
    with pytest.raises(CaptureError) as caught:
        capture(net(function, conv=_conv()), IMAGE)

    text = str(caught.value)
    assert "\n" not in text
    assert [part for part in ["Net", *parts] if part not in text] == [], text
    assert str(Path(__file__).parent) not in text
    assert str(Path(torch.__file__).parent) not in text
    out, err = capfd.readouterr()
    assert "def forward" not in out + err


def test_training_mode_names_the_module():
    model = net(_head, conv=_conv(), fc=nn.Linear(4, 5))
    model.fc.train()
    with pytest.raises(CaptureError, match=r"^fc in training mode: call model\.eval\(\)"):
        capture(model, IMAGE)
    with pytest.raises(CaptureError, match=r"^Net and 2 more modules in training mode"):
        capture(model.train(), IMAGE)


def test_model_that_counts_its_calls():
    def forward(s, x):
        s.count += 1
        return s.conv(x) * s.count

    with pytest.raises(CaptureError, match="keeps state between calls: it writes to its buffer 'count'"):
        capture(net(forward, conv=_conv(), count=torch.zeros(1)), IMAGE)


def test_model_that_assigns_to_a_buffer():
    def forward(s, x):
        s.count = s.count + 1
        return s.conv(x) * s.count

    model = net(forward, conv=_conv(), count=torch.zeros(1))
    with pytest.raises(CaptureError, match="keeps state between calls: it writes to its buffer 'count'"):
        capture(model, IMAGE)
    assert model.count.item() == 0


def test_model_that_assigns_to_a_plain_tensor():
    def forward(s, x):
        s.count = s.count + 1
        return s.conv(x) * s.count

    model = net(forward, conv=_conv())
    model.count = torch.zeros(1)
    with pytest.raises(CaptureError, match="keeps state between calls: it assigns to 'count', which it also reads"):
        capture(model, IMAGE)


def test_state_that_no_output_depends_on_is_said(caplog):
    def forward(s, x):
        s.count += 1
        s.mean = x.mean()[None]
        return s.conv(x)

    model = net(forward, conv=_conv(), count=torch.zeros(1), mean=torch.zeros(1))
    with caplog.at_level(logging.WARNING, logger="fastcnn"):
        captured = capture(model, IMAGE)

    assert set(captured.constants()) == {"conv.weight", "conv.bias"}
    assert "its buffer 'count' in every call" in caplog.text
    assert "its buffer 'mean' in every call" in caplog.text


def test_attributes_made_in_forward_do_not_stay():
    def forward(s, x):
        s.features = s.conv(x)
        return s.features

    model = net(forward, conv=_conv())
    capture(model, IMAGE)
    assert not hasattr(model, "features")


NAMES = ["graph", "code", "meta", "recompile", "validate_inputs", "global", "lambda", "self", "x", "a'b", 'a"b', "a\\b", "new\nline", "größe"]


def test_names_of_the_user_are_kept_beside_ours():
    """In-place ReLUs on a slice take the road that traces twice."""

    def forward(s, x):
        y = s.conv(x)
        y[:, 0].relu_()
        y = y.mean((2, 3))
        return sum(s.get_submodule(name)(y) for name in NAMES)

    model = net(forward, conv=_conv())
    for name in NAMES:
        model.add_module(name, nn.Linear(4, 2))
    model.eval()
    captured = capture(model, IMAGE)

    assert set(captured.constants()) == set(model.state_dict())
    assert all(node.target.isidentifier() for node in captured.graph.nodes if node.op == "get_attr")
    assert_same_function(captured, model, IMAGE)


@pytest.mark.parametrize(
    ("wrap", "taken"),
    [
        pytest.param(torch.compile, "took the Net out of its OptimizedModule", id="compiled"),
        pytest.param(nn.DataParallel, "took the Net out of its DataParallel", id="data parallel"),
    ],
)
def test_wrappers_are_taken_off(wrap, taken, caplog):
    model = net(_head, conv=_conv(), fc=nn.Linear(4, 5))
    with caplog.at_level(logging.INFO, logger="fastcnn"):
        captured = capture(wrap(model).eval(), IMAGE)

    assert set(captured.constants()) == set(model.state_dict())
    assert taken in caplog.text


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_refused():
    scripted = torch.jit.trace(nn.Conv2d(3, 4, 3).eval(), IMAGE)
    with pytest.raises(CaptureError, match=r"the model is a TorchScript module, .*give the Python module"):
        capture(scripted, IMAGE)
    with pytest.raises(CaptureError, match="its part '0' is a TorchScript module"):
        capture(nn.Sequential(scripted).eval(), IMAGE)


def test_view_works_in_any_memory_format():
    model = net(lambda s, x: s.conv(x).view(x.shape[0], -1), conv=_conv())
    captured = capture(model, IMAGE)

    torch.testing.assert_close(captured.module(IMAGE.contiguous(memory_format=torch.channels_last))[0], model(IMAGE))


@pytest.mark.parametrize(
    ("example", "text"),
    [
        pytest.param(torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "it is torch.complex64", id="complex"),
        pytest.param(
            [1, 2], "example input 0 must be a tensor of real numbers with the batch first, such as [1, 3, 224, 224]; it is int", id="numbers"
        ),
        pytest.param({"x": 1}, "it is dict", id="dict"),
        pytest.param((), "holds no tensor", id="nothing at all"),
        pytest.param((IMAGE, torch.zeros(3, 4)), "every input has the batch first", id="another batch"),
        pytest.param(None, "it is NoneType", id="nothing"),
        pytest.param(torch.tensor(1.0), "it is torch.float32 []", id="no batch"),
        pytest.param(torch.zeros(0, 3, 8, 8), "empty batch", id="empty"),
        pytest.param(torch.zeros(2, 3, 8, 8, device="meta"), "meta tensor", id="meta"),
    ],
)
def test_wrong_examples(example, text):
    with pytest.raises(InputError) as caught:
        capture(net(_head, conv=_conv(), fc=nn.Linear(4, 5)), example)

    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_on_another_device():
    with pytest.raises(InputError, match=r"^conv\.weight is on meta, the example input on cpu"):
        capture(Net(lambda s, x: s.conv(x), conv=_conv()).eval().to("meta"), IMAGE)


def test_not_a_module():
    with pytest.raises(CaptureError, match=r"must be a torch\.nn\.Module; it is a function"):
        capture(lambda x: x, IMAGE)


def test_errors_of_our_models_come_through():
    with pytest.raises(InputError, match="simple_cnn"):
        capture(fastcnn.create_model("simple_cnn"), images(1, 3, 28, 28))


def test_second_argument_missing():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(CaptureError, match="missing a required argument: 'y'"):
        capture(Two().eval(), IMAGE)


def test_a_window_of_one_is_not_dilated():
    """oneDNN ends the process over a 1×1 convolution with dilation and padding on a map one pixel wide."""
    model = net(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 7, 1, stride=(3, 2), padding=1, dilation=2))
    x = torch.rand(3, 3, 8, 1, generator=torch.Generator().manual_seed(0))
    captured = capture(model, x)
    (node,) = captured.calls(aten.conv2d.default)
    assert Convolution.of(node).dilation == (1, 1)
    for batch in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(captured.module(batch)[0], model(x))
    wide = capture(net(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 7, (3, 1), padding=2, dilation=(2, 5))), x)
    (node,) = wide.calls(aten.conv2d.default)
    assert Convolution.of(node).dilation == (2, 1)
