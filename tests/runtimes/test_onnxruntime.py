"""Sessions are opened alike everywhere, refuse in our own words, and report to nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from graph_support import images, net
from torch import nn

from fastcnn.errors import BackendError
from fastcnn.export.onnx_lowering import lower_to_onnx
from fastcnn.graph.capture import capture
from fastcnn.runtimes.onnxruntime import open_session, reason

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> bytes:
    return lower_to_onnx(capture(net(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 4, 3)), images(1, 3, 8, 8))).SerializeToString()


def test_threads_and_provider_are_those_asked_for(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    for source in (model, tmp_path / "model.onnx"):
        session = open_session(source, threads=1)
        assert session.get_session_options().intra_op_num_threads == 1
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_what_the_runtime_made_of_the_model_is_written(model: bytes, tmp_path: Path) -> None:
    open_session(model, optimized_model=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx").stat().st_size > 0


def test_a_model_that_the_runtime_refuses() -> None:
    with pytest.raises(BackendError, match=r"^onnxruntime cannot run the model: ") as caught:
        open_session(b"no such thing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running ConvTranspose node. Name:'stem/ConvTranspose' "
            "Status Message: output_padding (1) may be too large for stride (1).",
            "operation ConvTranspose (stem/ConvTranspose): output_padding (1) may be too large for stride (1).",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Node (Squeeze) Op (Squeeze) [ShapeInferenceError] Dimension of input 3 must be 1 instead of 7",
            "operation Squeeze: [ShapeInferenceError] Dimension of input 3 must be 1 instead of 7",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Resize(18) node with name 'up/Resize'",
            "operation Resize (up/Resize): it has no kernel for this type",
        ),
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Failed to load model because\nprotobuf parsing failed.",
            "Failed to load model because protobuf parsing failed.",
        ),
    ],
)
def test_a_complaint_begins_with_the_operation(raw: str, line: str) -> None:
    assert reason(RuntimeError(raw)) == line


def test_nothing_is_left_in_the_home_folder(model: bytes, tmp_path: Path) -> None:
    """onnxruntime 1.31 leaves a device identifier and a queue of events in a fresh one."""
    home, file = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    file.write_bytes(model)
    code = f"""
import pathlib
from fastcnn.runtimes.onnxruntime import open_session, reason
print(open_session(pathlib.Path({str(file)!r})).get_inputs()[0].name)
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY" and not name.startswith("XDG_")}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**environment, "HOME": str(home), "USERPROFILE": str(home)}
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip()
    assert list(home.rglob("*")) == []
