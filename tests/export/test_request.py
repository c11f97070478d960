"""What cannot be met is refused before any work starts, in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from export_networks import EXPORTERS, example, small

from fastcnn.errors import RequestError
from fastcnn.export import export_onnx
from fastcnn.export.request import check_request

DEFAULTS: dict[str, Any] = {"precision": "fp32", "batch_size": "dynamic", "batch_sizes": (1, 2, 5), "softmax": False, "labels": None, "force": False}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int8"}, "'int8' is not supported yet; there are fp32 and fp16"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"opset": 17}, "opset 17 cannot be written: give one from 18 to 23"),
        ({"opset": 24}, "opset 24 cannot be written: give one from 18 to 23"),
        ({"batch_size": 0}, "batch_size is a whole number from 1, or 'dynamic'; it is 0"),
        ({"batch_size": "many"}, "it is 'many'"),
        ({"batch_sizes": (0,)}, "batch_sizes must be whole numbers from 1"),
        ({"labels": "missing.txt"}, "label file missing.txt cannot be read"),
    ],
)
def test_wrong_options(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_request(tmp_path / "model.onnx", **{**DEFAULTS, **option})
    assert "\n" not in str(caught.value)


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    existing = tmp_path / "model.onnx"
    existing.write_text("mine")
    for path, message in [(existing, "overwrites it"), (tmp_path, "is a folder"), (tmp_path / "missing" / "model.onnx", "there is no folder")]:
        with pytest.raises(RequestError, match=message):
            check_request(path, **DEFAULTS)
    assert check_request(existing, **{**DEFAULTS, "force": True}).path == existing
    assert existing.read_text() == "mine"


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        folder = tmp_path
    else:
        folder = Path("/proc/self")  # root may write anywhere else
    with pytest.raises(RequestError, match="cannot be written"):
        check_request(folder / "model.onnx", **DEFAULTS)


@pytest.mark.parametrize("format_", EXPORTERS)
def test_an_existing_file_is_refused_before_the_model_is_looked_at(format_: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(RequestError, match="exists"):
        EXPORTERS[format_]("no model at all", path, example())
    assert path.read_text() == "mine"


def test_labels_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\ufeffcat\ndog \nhérisson\n\n", encoding="utf-8")
    assert check_request(tmp_path / "m", **{**DEFAULTS, "labels": file}).labels == ("cat", "dog", "hérisson")
    assert check_request(tmp_path / "m", **{**DEFAULTS, "labels": ["a", "b"]}).labels == ("a", "b")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="no UTF-8 text"):
        check_request(tmp_path / "m", **{**DEFAULTS, "labels": file})


def test_labels_must_be_as_many_as_classes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="3 labels do not fit small, which has 4 classes"):
        export_onnx(small(), tmp_path / "model.onnx", example(), labels=["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_checked_on_several_batches(tmp_path: Path) -> None:
    assert check_request(tmp_path / "m", **{**DEFAULTS, "batch_size": 2}).slices == ((0, 2), (2, 4), (4, 6))
    assert check_request(tmp_path / "m", **{**DEFAULTS, "batch_size": 8}).slices == ((0, 8),)
    assert check_request(tmp_path / "m", **DEFAULTS).slices == ((0, 1), (0, 2), (0, 5))
