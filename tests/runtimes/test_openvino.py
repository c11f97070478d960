"""Models are compiled alike everywhere, refusals are in our own words, and nothing is reported to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from graph_support import images, net
from torch import nn

from fastcnn.errors import BackendError
from fastcnn.export.onnx_lowering import lower_to_onnx
from fastcnn.graph.capture import capture
from fastcnn.runtimes.openvino import _first_refused, compile_model, reason

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def model() -> bytes:
    return lower_to_onnx(capture(net(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)), images(1, 3, 8, 8))).SerializeToString()


def test_threads_precision_and_batch_are_those_asked_for(model: bytes) -> None:
    compiled = compile_model(model, threads=1, batch_size=3)

    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.input(0).shape[0] == 3
    assert compile_model(model).input(0).partial_shape[0].is_dynamic


def test_a_model_that_the_runtime_refuses() -> None:
    with pytest.raises(BackendError, match=r"^OpenVINO cannot compile the model: ") as caught:
        compile_model(b"no such thing")
    assert "\n" not in str(caught.value)


def test_the_import_asks_no_host_and_leaves_the_home_folder_empty(tmp_path: Path) -> None:
    code = """
import socket, sys
asked = []
def refuse(host, *rest, **named):
    asked.append(host)
    raise socket.gaierror("no network in this test")
socket.getaddrinfo = refuse
from fastcnn.runtimes.openvino import import_openvino
openvino = import_openvino()
assert import_openvino() is openvino
print(openvino.Core().available_devices[:1], asked, "openvino_telemetry" in sys.modules)
"""
    # OpenVINO reports nothing where it believes that it runs in continuous integration.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "['CPU'] [] False"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            "Exception from src/inference/src/cpp/core.cpp:105:\nCheck 'false' failed at src/unconverted_ops_report.cpp:151:\nFrontEnd API failed:\n"
            "Failed operations detailed log:\n-- Pad-13 with a message:\nWhile validating ONNX node '<Node(Pad): Pad>':\n"
            "Exception from src/op/pad.cpp:32:\nUnsupported padding mode: [wrap]\nSummary:\n-- Conversion is failed for: Pad-13",
            "operation Pad: Unsupported padding mode: [wrap]",
        ),
        ("Exception from src/inference/src/cpp/core.cpp:105:\nsomething else", "something else"),
    ],
)
def test_a_complaint_begins_with_the_operation(raw: str, line: str) -> None:
    assert reason(RuntimeError(raw)) == line


@pytest.mark.parametrize("refused", ["Relu", "Add", "MatMul"])
def test_of_a_refusal_without_a_word_the_operation_is_found(refused: str) -> None:
    nodes = [
        onnx.helper.make_node(kind, [f"v{index}", *more], [f"v{index + 1}"], name=f"{kind.lower()}.{index}")
        for index, (kind, more) in enumerate((("Neg", ()), ("Relu", ()), ("Add", ("v0",)), ("Exp", ()), ("MatMul", ("v0",))))
    ]
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("v0", "v5")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", sides[:1], sides[1:])).SerializeToString()

    def compiles(cut: bytes) -> bool:
        graph = onnx.load_from_string(cut).graph
        assert [output.name for output in graph.output] == [graph.node[-1].output[0]]
        return all(node.op_type != refused for node in graph.node)

    number = [node.op_type for node in nodes].index(refused)
    assert _first_refused(model, compiles) == f"{refused} ({refused.lower()}.{number})"
    assert _first_refused(model, lambda cut: True) is None
