"""Files for one runtime: what is adapted, what is refused before any work, and what the rules of a parser find in a graph."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from export_networks import example, small
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.export import export_onnx, read_metadata, verify_file
from fastcnn.export.adapting import adapt
from fastcnn.export.formats import ONNX, PT2, TORCHSCRIPT
from fastcnn.export.golden import decode
from fastcnn.export.options import ExportOptions
from fastcnn.export.parser_rules import broken_rules
from fastcnn.export.preprocess import Preprocess
from fastcnn.export.profiles import PROFILES, parse_profile
from fastcnn.precision import Precision
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.request import Int8Request, QuantizeFor

PIXELS = Preprocessing("RGB", 14, (12, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
INT8 = {"precision": Precision.int8, "int8": Int8Request(calibration="pictures")}


def options(**given: Any) -> ExportOptions:
    return ExportOptions(**{"format": ONNX, "path": Path("model.onnx"), **given})


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("opencv", INT8, "--for opencv and --precision int8 do not go together"),
        ("opencv", {"preprocess": Preprocess.resize}, "resize of any picture do not go together: .* give --picture-size"),
        ("opencv", {"format": PT2}, r"OpenCV opens no \.pt2 file: give --onnx"),
        ("tensorrt", {"opset": 17}, "--opset 17 do not go together: the parser of TensorRT 8.4 reads up to 13"),
        ("tract", {"precision": Precision.fp16}, "--precision fp16 do not go together: it refuses a float16 Gemm"),
        ("ncnn", {"precision": Precision.fp16}, "pnnx fp16=1"),
        ("ncnn", {"preprocess": Preprocess.normalize}, "--preprocess normalize do not go together: it has no Cast"),
        ("triton", {"batch_size": 8}, "--batch-size 8 do not go together: the server makes batches"),
        ("triton", {"format": PT2}, "opens no .pt2 file: give --onnx or --torchscript"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        adapt(options(**given), PROFILES[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "option", "said"),
    [
        ("tract", {}, "batch_size", "--batch-size dynamic do not go together: it cannot unify"),
        ("tensorrt", INT8, "quantize_for", "--quantize-for cpu do not go together: TensorRT has the kernels of --quantize-for tensorrt"),
    ],
)
def test_a_default_that_was_asked_for_is_not_changed(name: str, given: dict[str, Any], option: str, said: str) -> None:
    assert adapt(options(**given), PROFILES[name])[1]
    with pytest.raises(RequestError, match=said):
        adapt(options(**given), PROFILES[name], [option])


def test_what_was_left_open_is_made_to_fit_and_said() -> None:
    adapted, changes = adapt(options(), PROFILES["ncnn"])
    assert adapted.batch_size == 1
    assert [str(change) for change in changes] == [
        "batches of 1 instead of any size: its layers work on one picture at a time, of sizes that the file states"
    ]
    adapted, changes = adapt(options(**INT8), PROFILES["tensorrt"])
    assert adapted.int8 is not None
    assert adapted.int8.quantize_for is QuantizeFor.tensorrt
    assert "quantized for tensorrt instead of cpu" in str(changes[0])


@pytest.mark.parametrize(
    ("name", "given"),
    [("web", {}), ("tract", {"batch_size": 4}), ("triton", {"format": TORCHSCRIPT}), ("opencv", {})],
    ids=["web", "tract", "triton", "opencv"],
)
def test_what_fits_stays_as_it_is(name: str, given: dict[str, Any]) -> None:
    before = options(**given)
    adapted, changes = adapt(before, PROFILES[name])
    assert changes == ()
    assert {key: value for key, value in vars(adapted).items() if key != "profile"} == {
        key: value for key, value in vars(before).items() if key != "profile"
    }


def test_an_unknown_runtime_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean tensorrt"):
        parse_profile("tensor-rt")


def test_a_row_refuses_nothing_without_its_reason() -> None:
    for row in PROFILES.values():
        assert (row.batch == "any") == (not row.batch_reason), row.name
        assert (row.newest_opset is None) == (not row.opset_reason), row.name
        assert all(len(why) > 10 for why in (*row.no_precision.values(), *row.no_preprocess.values(), *row.no_operators.values()))
        assert all(onnx.defs.has(operator) for operator in row.operators or ()), row.name


# -- rules of a parser -------------------------------------------------------------------------------------------------

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def model_of(
    op_type: str,
    shapes: dict[str, list[int]],
    *,
    types: dict[str, int] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One operator of opset 13, `out` its output; float32 unless `types` says otherwise."""
    constants, types = constants or {}, types or {}
    inputs = [name for name in (*shapes, *constants) if name != "out"]
    values = {name: helper.make_tensor_value_info(name, types.get(name, FLOAT), shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["out"], name="it", **attributes)],
        "g",
        [value for name, value in values.items() if name != "out"],
        [values["out"]],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


PICTURE, WEIGHTS = [1, 3, 8, 8], np.zeros((4, 3, 3, 3), np.float32)
BROKEN = {
    "no such operator": ("tensorrt", model_of("NonZero", {"x": [4], "out": [1, 4]}, types={"out": TensorProto.INT64}), "it has no NonZero (it)"),
    "two types": (
        "tensorrt",
        model_of("MatMul", {"x": [2, 3], "w": [3, 4], "out": [2, 4]}, types={"x": HALF, "w": HALF}),
        "MatMul (it) mixes float16 and float",
    ),
    "pixels that are moved first": (
        "tensorrt",
        model_of("Transpose", {"x": [1, 8, 8, 3], "out": PICTURE}, types={"x": UINT8, "out": UINT8}, perm=[0, 3, 1, 2]),
        "Transpose (it) reads uint8, which has to be cast first",
    ),
    "weights that are computed": (
        "tensorrt",
        model_of("Conv", {"x": PICTURE, "w": [4, 3, 3, 3], "out": [1, 4, 6, 6]}),
        "input 1 of Conv (it) must be a constant",
    ),
    "one dimension": (
        "tensorrt",
        model_of("Conv", {"x": [1, 3, 8], "out": [1, 4, 6]}, constants={"w": WEIGHTS[..., 0]}),
        "Conv (it) is of one dimension, and has to be of two or three",
    ),
    "unsigned numbers": (
        "tensorrt",
        model_of(
            "QuantizeLinear",
            {"x": [4], "out": [4]},
            types={"out": UINT8},
            constants={"scale": np.array(1, np.float32), "zero": np.array(128, np.uint8)},
        ),
        "QuantizeLinear (it) has to be of int8 with its zero at 0",
    ),
    "a cast": ("ncnn", model_of("Cast", {"x": [4], "out": [4]}, types={"out": HALF}, to=HALF), "Cast (it): ncnn has no such layer"),
}


@pytest.mark.parametrize(("name", "model", "said"), BROKEN.values(), ids=BROKEN)
def test_what_a_parser_stops_at_is_found_in_the_graph(name: str, model: onnx.ModelProto, said: str) -> None:
    assert list(broken_rules(model, PROFILES[name])) == [said]
    assert list(broken_rules(model, PROFILES["web"])) == (["MatMul (it) mixes float16 and float"] if "mixes" in said else [])


def test_a_graph_that_a_parser_reads() -> None:
    assert list(broken_rules(model_of("Conv", {"x": PICTURE, "out": [1, 4, 6, 6]}, constants={"w": WEIGHTS}), PROFILES["tensorrt"])) == []


class Normed(nn.Module):
    """[N, 3, 12, 12] → [N, 3]; layer norm, which the table of TensorRT's parser lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([3])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.mean((2, 3)))


def test_a_network_that_a_parser_does_not_read_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"normed cannot be exported for TensorRT: it needs opset 17, .*; it has no LayerNormalization"):
        export_onnx(Normed().eval(), tmp_path / "model.onnx", example(), profile="tensorrt")
    assert not list(tmp_path.iterdir())


# -- files -------------------------------------------------------------------------------------------------------------

EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opencv": ("opencv", {"preprocess": "resize", "picture_size": (20, 31), "preprocessing": PIXELS}),
    "tensorrt": ("tensorrt", {"preprocess": "normalize", "preprocessing": PIXELS, "precision": "fp16"}),
    "tensorrt int8": (
        "tensorrt",
        {"precision": "int8", "calibration": nn.functional.interpolate(torch.rand(40, 3, 4, 4), size=12, mode="bilinear"), "max_error": 0.5},
    ),
    "tract": ("tract", {}),
    "ncnn": ("ncnn", {}),
    "web": ("web", {"softmax": True}),
    "triton": ("triton", {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of the small network for each row."""
    folder = tmp_path_factory.mktemp("profiles")
    made = {}
    for name, (profile, given) in EXPORTS.items():
        made[name] = folder / f"{name.replace(' ', '_')}.onnx"
        export_onnx(small(), made[name], example(), profile=profile, **given)
    return made


@pytest.mark.parametrize("name", EXPORTS)
def test_a_file_for_a_runtime_keeps_its_rules_and_is_right(files: dict[str, Path], name: str) -> None:
    profile, path = PROFILES[EXPORTS[name][0]], files[name]
    assert list(broken_rules(onnx.load(path), profile)) == []
    assert verify_file(path).passed
    metadata = read_metadata(path)
    assert (metadata["input"]["shape"][0] == 1) == (profile.batch == "fixed")
    if metadata["precision"] == "int8":
        return  # the reference evaluator saturates elsewhere than a runtime: the gate has judged it
    pair = decode(metadata["golden"])
    evaluator = onnx.reference.ReferenceEvaluator(str(path))
    for batch, (expected, *_) in zip(pair.batches, pair.outputs, strict=True):
        (answer,) = evaluator.run(None, {"input": pair.pictures[list(batch)]})
        assert np.linalg.norm(answer[: len(expected)] - expected) <= max(pair.tolerance, 1e-5) * np.linalg.norm(expected)


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs opencv-python-headless; make compat runs it in an environment of its own")
@pytest.mark.parametrize("name", ["opencv", "triton"])
def test_opencv_gives_the_golden_answer(files: dict[str, Path], name: str) -> None:
    import cv2

    pair = decode(read_metadata(files[name])["golden"])
    network = cv2.dnn.readNetFromONNX(str(files[name]))
    for batch, (expected, *_) in zip(pair.batches, pair.outputs, strict=True):
        network.setInput(pair.pictures[list(batch)])
        np.testing.assert_allclose(network.forward()[: len(expected)], expected, rtol=1e-4, atol=1e-4)
