"""What cannot be met is refused before any work starts, in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from export_networks import EXPORTERS, example, small

from fastcnn.errors import RequestError
from fastcnn.export import export_onnx
from fastcnn.export.formats import FORMATS, ONNX
from fastcnn.export.options import ExportOptions, parse_batch_size, parse_opset, parse_picture_size, parse_precision, read_labels
from fastcnn.precision import Precision


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int8"}, "int8 needs --calibration"),
        ({"calibration": "folder"}, "--calibration is for --precision int8 and fp16, and fp32 was asked for"),
        ({"precision": "int8", "calibration": "folder", "tolerance": 0.1}, "an int8 file is held to --max-error"),
        ({"precision": "int8", "calibration": "folder", "max_error": 0.0}, "max_error is a share, above 0 and below 1"),
        ({"precision": "int8", "calibration": "folder", "quantize_for": "gpu"}, "unknown quantize_for 'gpu'"),
        ({"precision": "int8", "calibration": "folder", "save_ranges": "ranges.txt"}, "ranges.txt does not end in .json"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"opset": 12}, "opset 12 cannot be written: give one from 13 to 23, or none for the lowest that the model needs"),
        ({"opset": 24}, "opset 24 cannot be written: give one from 13 to 23"),
        ({"opset": "newest"}, "a number from 13 to 23, or the word min; it is 'newest'"),
        ({"batch_size": 0}, "batch_size is a whole number from 1, or 'dynamic'; it is 0"),
        ({"batch_size": "many"}, "it is 'many'"),
        ({"tolerance": 0.0}, "above 0 and below 1; it is 0.0"),
        ({"tolerance": float("nan")}, "it is nan"),
        ({"batch_sizes": (0,)}, "batch_sizes must be whole numbers from 1"),
        ({"labels": "missing.txt"}, "label file missing.txt cannot be read"),
    ],
)
def test_wrong_options(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        export_onnx("no model at all", tmp_path / "model.onnx", example(), **option)
    assert "\n" not in str(caught.value)


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    existing = tmp_path / "model.onnx"
    existing.write_text("mine")
    for path, message in [(existing, "overwrites it"), (tmp_path, "is a folder"), (tmp_path / "missing" / "model.onnx", "there is no folder")]:
        with pytest.raises(RequestError, match=message):
            export_onnx("no model at all", path, example())
    assert existing.read_text() == "mine"


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        folder = tmp_path
    else:
        folder = Path("/proc/self")  # root may write anywhere else
    with pytest.raises(RequestError, match="cannot be written"):
        export_onnx("no model at all", folder / "model.onnx", example())


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
    assert read_labels(file) == ("cat", "dog", "hérisson")
    assert read_labels(["a", "b"]) == ("a", "b")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="no UTF-8 text"):
        read_labels(file)


def test_labels_must_be_as_many_as_classes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="3 labels do not fit small, which has 4 classes"):
        export_onnx(small(), tmp_path / "model.onnx", example(), labels=["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_checked_on_several_batches(tmp_path: Path) -> None:
    def slices(**options: Any) -> tuple[tuple[int, int], ...]:
        return ExportOptions(format=ONNX, path=tmp_path / "m", **options).slices

    assert slices(batch_size=2) == ((0, 2), (2, 4), (4, 6))
    assert slices(batch_size=8) == ((0, 8),)
    assert slices() == ((0, 1), (0, 2), (0, 5))


def test_precisions_by_name_in_capitals_or_not() -> None:
    assert parse_precision("FP16") is parse_precision(Precision.fp16) is Precision.fp16
    with pytest.raises(RequestError, match="unknown precision 'bf16'; there are fp32, fp16, int8"):
        parse_precision("bf16")


def test_the_lowest_opset_has_a_name() -> None:
    assert (parse_opset("min"), parse_opset(None), parse_opset("17"), parse_opset(17)) == (None, None, 17, 17)


def test_picture_sizes() -> None:
    assert (parse_picture_size("480x640"), parse_picture_size("480X640"), parse_picture_size(None)) == ((480, 640), (480, 640), None)
    for text in ("480", "480x", "0x640", "axb", "1x2x3"):
        with pytest.raises(RequestError, match="--picture-size is HEIGHTxWIDTH, such as 480x640"):
            parse_picture_size(text)


def test_batch_sizes() -> None:
    assert (parse_batch_size("dynamic"), parse_batch_size(3)) == (None, 3)
    with pytest.raises(RequestError, match="it is True"):
        parse_batch_size(True)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if not row.has_opset])
def test_an_opset_belongs_to_a_format_that_has_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"belongs to ONNX, and this is a {name} export"):
        ExportOptions(format=FORMATS[name], path=tmp_path / "m", opset=18)
