"""Older opsets: what can be written for them, operator by operator, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastcnn.errors import RequestError
from fastcnn.export.opsets import LOWEST, WRITTEN, drop_allowzero, lowest_opset, obstacles, to_opset


def model_of(
    op_type: str, inputs: list[str], *, types: dict[str, int] | None = None, constants: dict[str, list[int]] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """A model of opset 18 with one node; its values are float32 unless `types` says otherwise."""
    constants, types = constants or {}, types or {}
    values = {name: helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), ["n"]) for name in (*inputs, "out")}
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["out"], **attributes)],
        "g",
        [value for name, value in values.items() if name not in constants and name not in ("out", "")],
        [values["out"]],
        [numpy_helper.from_array(np.array(numbers, dtype=np.int64), name) for name, numbers in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", WRITTEN)])


INT64 = TensorProto.INT64
CASES = {
    "same since 13": (model_of("Concat", ["a", "b"], axis=1), 13),
    "axes as an attribute": (model_of("ReduceMean", ["a", "axes"], constants={"axes": [2, 3]}), 13),
    "axes that are computed": (model_of("ReduceMean", ["a", "axes"], types={"axes": INT64}), 18),
    "a new default": (model_of("Reshape", ["a", "shape"], constants={"shape": [0, 5]}, allowzero=0), 13),
    "not the new default": (model_of("Reshape", ["a", "shape"], constants={"shape": [0, 5]}, allowzero=1), 14),
    "an attribute without a default": (model_of("Shape", ["a"], types={"out": INT64}, start=0, end=1), 15),
    "a type that came later": (model_of("Add", ["a", "b"], types=dict.fromkeys(("a", "b", "out"), TensorProto.UINT8)), 14),
    "a type that was there": (model_of("Relu", ["a"], types=dict.fromkeys(("a", "out"), TensorProto.FLOAT16)), 13),
    "an operator that came later": (model_of("LayerNormalization", ["a", "b"]), 17),
    "an operator that only 18 has": (model_of("Mish", ["a"]), 18),
    "one whose meaning changed": (model_of("RoiAlign", ["a", "b", "c"], types={"c": INT64}, coordinate_transformation_mode="half_pixel"), 16),
    "an optional input that is left out": (model_of("Resize", ["a", "", "scales"], mode="linear", antialias=0), 13),
    "a filter that came later": (model_of("Resize", ["a", "", "scales"], mode="linear", antialias=1), 18),
    "padded axes": (model_of("Pad", ["a", "pads", "", "axes"], constants={"pads": [1, 1], "axes": [2]}), 18),
}


@pytest.mark.parametrize(("model", "lowest"), CASES.values(), ids=CASES)
def test_the_lowest_opset_of_one_operator(model: onnx.ModelProto, lowest: int) -> None:
    op_type = model.graph.node[0].op_type
    assert lowest_opset(model) == lowest
    if lowest > LOWEST:
        assert obstacles(model, lowest - 1)
        with pytest.raises(RequestError, match=rf"net cannot be written for ONNX opset {lowest - 1} \(the lowest is {lowest}\): {op_type} "):
            to_opset(model, lowest - 1, "net")
    if lowest < WRITTEN:
        written = onnx.ModelProto()
        written.CopyFrom(model)
        to_opset(written, lowest, "net")
        onnx.checker.check_model(written)
        assert [entry.version for entry in written.opset_import] == [lowest]


def test_the_rewritten_mean() -> None:
    model = model_of("ReduceMean", ["a", "axes"], constants={"axes": [2, 3]}, keepdims=1)
    to_opset(model, 13, "net")
    (node,) = model.graph.node
    assert list(node.input) == ["a"]
    assert {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute} == {"axes": [2, 3], "keepdims": 1}
    assert not model.graph.initializer


@pytest.mark.parametrize(("shape", "kept"), [([-1, 5], 0), ([0, 5], 1)])
def test_allowzero_stays_only_where_a_dimension_is_zero(shape: list[int], kept: int) -> None:
    model = model_of("Reshape", ["a", "shape"], constants={"shape": shape}, allowzero=1)
    drop_allowzero(model)
    assert len(model.graph.node[0].attribute) == kept
