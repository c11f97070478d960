"""A graph survives JSON bit by bit, and a file cannot name anything but operations that compute."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net, ops
from torch import nn

import fastcnn
from fastcnn.errors import FileFormatError
from fastcnn.graph.capture import capture
from fastcnn.graph.output_structure import flatten, packer
from fastcnn.graph.passes import PASSES, run_passes
from fastcnn.graph.serialization import graph_from_json, graph_to_json

IMAGE = images(2, 3, 8, 8)


def _through_json(captured):
    text = json.dumps(graph_to_json(captured), allow_nan=False)
    return graph_from_json(json.loads(text), captured.constants())


def _awkward_arguments(s, x):
    y = F.relu(s.conv(x) + x.mean((2, 3), keepdim=True)[:, :1])
    y = y.clamp(min=-float("inf"), max=1e30).to(torch.float64).to(torch.float32)
    y = F.pad(y, (1, 1), value=float("-inf")).to(memory_format=torch.channels_last)
    low, high = y.flatten(1).split(y.flatten(1).shape[1] - 3, dim=1)
    return {"low": low, "high": (high, y.new_zeros(x.shape[0], 2, dtype=torch.float32))}


@pytest.mark.parametrize("names", [(), tuple(PASSES)], ids=["captured", "all passes"])
def test_round_trip(names):
    captured, _ = run_passes(capture(net(_awkward_arguments, conv=nn.Conv2d(3, 4, 3)), IMAGE), names)
    captured.cast_constants(torch.float32)
    restored = _through_json(captured)

    assert ops(restored) == ops(captured)
    assert [node.meta for node in restored.calls()] == [
        {key: node.meta[key] for key in ("shape", "dtype", "path", "folded")} for node in captured.calls()
    ]
    assert (restored.input_shape, restored.input_dtype, restored.info) == (captured.input_shape, captured.input_dtype, captured.info)
    for batch in (1, 5):
        x = images(batch, 3, 8, 8, seed=batch)
        torch.testing.assert_close(restored.module(x), captured.module(x), rtol=0, atol=0)
    assert graph_to_json(_through_json(restored)) == graph_to_json(restored)


@pytest.mark.parametrize("name", ["simple_cnn", "googlenet", "squeezenet1_1"])
def test_models(name):
    model = fastcnn.create_model(name)
    shape = (1, 28, 28) if name == "simple_cnn" else (3, 64, 64)
    captured, _ = run_passes(capture(model, images(1, *shape)), tuple(PASSES))
    captured.cast_constants(torch.float32)
    x = images(2, *shape)

    torch.testing.assert_close(_through_json(captured).module(x), captured.module(x), rtol=0, atol=0)


def test_data_dependent_sizes():
    captured = capture(net(lambda s, x: s.conv(x).nonzero().float(), conv=nn.Conv2d(3, 4, 3)), IMAGE)

    torch.testing.assert_close(_through_json(captured).module(IMAGE), captured.module(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "aten.system",
        "aten.relu.nothing",
        "aten.__class__.default",
        "eval",
        "aten.conv2d",
        "aten.from_file.default",
        "prims.add.default",
        "",
    ],
)
def test_unknown_operation(target):
    captured = capture(net(lambda s, x: F.relu(s.conv(x)), conv=nn.Conv2d(3, 4, 3)), IMAGE)
    data = graph_to_json(captured)
    next(entry for entry in data["nodes"] if entry["target"] == "aten.relu.default")["target"] = target

    with pytest.raises(FileFormatError, match="which this version of PyTorch does not have as an ATen operation"):
        graph_from_json(data, captured.constants())


ATTACK = '__import__("os").abort()'


def _input_name(data):
    data["nodes"][0]["target"] = f"x={ATTACK}"


def _keyword(data):
    data["nodes"][-2]["kwargs"]["dict"][f"a={ATTACK}, b"] = 1


def _kind(data):
    data["nodes"][-2]["op"] = "call_method"


@pytest.mark.parametrize("tamper", [_input_name, _keyword, _kind], ids=lambda function: function.__name__)
def test_names_cannot_carry_code(tamper):
    """torch.fx turns a graph into Python source: a name that is not one would run."""
    captured = capture(net(lambda s, x: F.relu(s.conv(x)), conv=nn.Conv2d(3, 4, 3)), IMAGE)
    data = graph_to_json(captured)
    tamper(data)

    with pytest.raises(FileFormatError):
        graph_from_json(data, captured.constants())


def test_names_of_constants_cannot_carry_code():
    """The attribute that torch.fx names in the source has a name of ours."""
    captured = capture(net(lambda s, x: F.relu(s.conv(x)), conv=nn.Conv2d(3, 4, 3)), IMAGE)
    data, name = graph_to_json(captured), f'a"+{ATTACK}+"'
    next(entry for entry in data["nodes"] if entry["target"] == "conv.bias")["target"] = name
    loaded = graph_from_json(data, captured.constants() | {name: captured.constants()["conv.bias"]})

    assert set(loaded.constants()) == {"conv.weight", name}
    assert '"' not in loaded.module.code
    assert "__import__(" not in loaded.module.code
    torch.testing.assert_close(loaded.module(IMAGE), captured.module(IMAGE))


def test_node_names_cannot_carry_code():
    """These are cleaned by torch.fx itself."""
    captured = capture(net(lambda s, x: F.relu(s.conv(x)), conv=nn.Conv2d(3, 4, 3)), IMAGE)
    text = json.dumps(graph_to_json(captured)).replace('"relu"', json.dumps(f"a={ATTACK};b"))

    torch.testing.assert_close(graph_from_json(json.loads(text), captured.constants()).module(IMAGE), captured.module(IMAGE))


def test_missing_constant():
    captured = capture(net(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)), IMAGE)

    with pytest.raises(FileFormatError, match=r"lacks the constant 'conv\.bias'"):
        graph_from_json(graph_to_json(captured), {"conv.weight": captured.constants()["conv.weight"]})


def test_foreign_function_cannot_be_written():
    captured = capture(net(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)), IMAGE)
    next(captured.calls()).target = print

    with pytest.raises(TypeError, match="is no ATen operation"):
        graph_to_json(captured)


def test_named_tuple_whose_class_is_not_at_hand():
    text = (
        flatten((IMAGE, IMAGE), "net")[1]
        .replace('"builtins.tuple"', '"collections.namedtuple"')
        .replace('"null"', r'"[\"no.such.module\", \"Pair\", \"a\", \"b\"]"')
    )
    pair = packer(text)(["x", "y"])

    assert (type(pair).__name__, pair.a, pair.b) == ("Pair", "x", "y")


def test_dataclass_whose_class_is_not_at_hand():
    text = (
        flatten((IMAGE, None), "net")[1]
        .replace('"builtins.tuple"', '"dataclasses.dataclass"')
        .replace('"null"', r'"[\"no.such.module\", \"Output\", \"a\", \"b\"]"', 1)
    )
    output = packer(text)(["x"])

    assert (type(output).__name__, output.a, output.b) == ("Output", "x", None)


@pytest.mark.parametrize("text", ["", "[]", "[1, {}]", '[1, {"type": "os.system", "context": null, "children_spec": []}]', '{"a": 1}', "[1, null]"])
def test_damaged_structure(text):
    with pytest.raises(FileFormatError, match="structure of the model's outputs"):
        packer(text)
