"""What one runtime of two gets wrong keeps a file from that runtime, and from nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_networks import example, small

from fastcnn.errors import BackendError, ParityError
from fastcnn.export import check, export_onnx, read_metadata, verification, verify_file
from fastcnn.export.runtimes import runtimes_for
from fastcnn.prediction.loading import load_predictor
from fastcnn.preprocessing import Preprocessing

Run = Callable[[Path, Any], Any]


def refuses(path: Path, batches: Any) -> Any:
    raise ParityError("OpenVINO cannot run the file: operation Pad: Unsupported padding mode: [wrap]")


def errs(path: Path, batches: Any) -> Any:
    return [[output * 1.5 for output in outputs] for outputs in runtimes_for("onnx")["onnxruntime"](path, batches)]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (refuses, "OpenVINO cannot run the file: operation Pad: Unsupported padding mode: [wrap]"),
        (errs, "openvino does not compute what the model computes (relative error 5e-01)"),
    ],
)
def test_the_file_is_written_for_the_other_one(
    second: Run, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = runtimes_for("onnx")["onnxruntime"]
    for module in (check, verification):
        monkeypatch.setattr(module, "runtimes_for", lambda format_: {"onnxruntime": first, "openvino": second})
    path = tmp_path / "model.onnx"
    with caplog.at_level(logging.WARNING):
        report = export_onnx(small(), path, example())
    assert report.parity.passed
    assert report.runtimes == report.parity.runtimes == ("onnxruntime",)
    assert report.left_out == {"openvino": reason}
    assert f"{path} is not for openvino: {reason}" in caplog.messages
    metadata = read_metadata(path)
    assert metadata["runtimes"] == ["onnxruntime"]
    assert metadata["left_out"] == {"openvino": reason}
    assert set(metadata["parity"]) == {"onnxruntime"}

    again = verify_file(path)
    assert again.passed
    assert again.runtimes == ("onnxruntime",)
    assert again.notes == (f"the file is not for openvino: {reason}",)


def test_a_file_that_no_runtime_can_run_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "runtimes_for", lambda format_: {"onnxruntime": refuses, "openvino": refuses})
    with pytest.raises(ParityError, match="operation Pad"):
        export_onnx(small(), tmp_path / "model.onnx", example())
    monkeypatch.setattr(check, "runtimes_for", lambda format_: {"onnxruntime": errs, "openvino": refuses})
    with pytest.raises(ParityError, match="was not written"):
        export_onnx(small(), tmp_path / "model.onnx", example())
    assert list(tmp_path.iterdir()) == []


def test_predictions_come_from_a_runtime_that_the_file_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    runners = runtimes_for("onnx")
    monkeypatch.setattr(check, "runtimes_for", lambda format_: {"onnxruntime": errs, "openvino": runners["openvino"]})
    path = tmp_path / "model.onnx"
    size = (example().shape[2], example().shape[3])
    export_onnx(small(), path, example(), preprocessing=Preprocessing(resize=None, crop=size))
    assert load_predictor(path).runtime == "openvino"
    with pytest.raises(BackendError, match="is not for onnxruntime: onnxruntime does not compute"):
        load_predictor(path, backend="onnxruntime")
