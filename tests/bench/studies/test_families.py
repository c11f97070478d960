"""The study of other libraries' models: what it finds, keeps and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastcnn.bench.studies import families

RIGHT = {"error": 2e-7}
ROW = {"parameters": 1_250_000, "input": [3, 32, 32], "eager_error": 1e-7, "torch": RIGHT, "onnxruntime": RIGHT, "openvino": RIGHT, "seconds": 1.0}


def test_the_page_is_that_of_the_committed_result():
    root = Path(__file__).parents[3]
    models = json.loads((root / "bench/results/models/families.json").read_text())["models"]
    assert set(models) == set(families.FAMILIES)
    assert (root / "docs/families.md").read_text() == families.page(models)


def test_one_of_each_family():
    assert len(families.FAMILIES) == len(set(families.FAMILIES)) >= 60


def test_a_model_is_examined_and_not_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(families, "_in_a_process", families.examine)
    kept, page = tmp_path / "families.json", tmp_path / "families.md"
    families.main(["simple_cnn", "--json", str(kept), "--markdown", str(page)])

    row = json.loads(kept.read_text())["models"]["simple_cnn"]
    assert all(row[column]["error"] < 1e-5 for column in (*families.ENGINES, "onnx"))
    assert row["onnx"]["runtimes"] == ["onnxruntime", "openvino"]
    assert row["input"] == [1, 28, 28]
    assert "1 models; right: torch 1, onnxruntime 1, openvino 1, onnx 1" in capsys.readouterr().out
    assert "| `simple_cnn` | 0.0 M | 1×28×28 |" in page.read_text()

    monkeypatch.setattr(families, "_in_a_process", lambda text: pytest.fail(f"{text} is known"))
    families.main(["simple_cnn", "--json", str(kept)])


def test_a_process_that_dies_is_a_verdict(monkeypatch):
    monkeypatch.setattr(families, "_work", _die)
    assert families._in_a_process("simple_cnn") == {"crash": "exit code 7"}


def _die(*_: object) -> None:
    raise SystemExit(7)


def test_refusals_are_told_below_the_table():
    file = {"error": 3e-7, "runtimes": ["onnxruntime"], "left_out": {"openvino": "it differs"}, "opset": 17, "bytes": 1}
    models = {
        "timm:whole": ROW | {"onnx": file},
        "timm:part": ROW | {"openvino": {"refused": "ParityError: no"}, "onnx": RIGHT},
        "timm:none": {"crash": "exit code -11"},
    }
    table = families.markdown(models)

    assert "| `timm:whole` | 1.2 M | 3×32×32 | 1.0e-07 | 2.0e-07 | 2.0e-07 | 2.0e-07 | 3.0e-07, not for openvino |" in table
    assert "- `timm:whole`, the file is not for openvino: it differs" in table
    assert "- `timm:part`, openvino: ParityError: no" in table
    assert "- `timm:none`: exit code -11" in table
    assert families.summary(models) == "3 models; right: torch 2, onnxruntime 2, openvino 1, onnx 2"
