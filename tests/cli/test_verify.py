from __future__ import annotations

import hashlib
import json

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

import fastcnn
from fastcnn.models import create_model


@pytest.fixture
def onnx_file(cli, tmp_path):
    assert cli("export", "simple_cnn", "--onnx").exit_code == 0
    return tmp_path / "simple_cnn.onnx"


def test_a_good_file(cli, onnx_file):
    result = cli("verify", onnx_file)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "parity" in result.stdout


def test_json(cli, onnx_file):
    result = cli("verify", onnx_file, "--json")
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert answer["file"] == str(onnx_file)
    assert answer["parity"]["passed"] is True


@pytest.mark.parametrize("json_wanted", [False, True], ids=["text", "json"])
def test_one_changed_weight_is_code_1(cli, onnx_file, json_wanted):
    model = onnx.load(onnx_file)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, onnx_file)
    result = cli("verify", onnx_file, *(["--json"] if json_wanted else []))
    assert result.exit_code == 1, result.stderr
    assert result.stderr.startswith(f"error: {onnx_file} does not compute what its reference computes: ")
    assert result.stderr.count("\n") == 1
    if json_wanted:
        assert json.loads(result.stdout)["parity"]["passed"] is False
    else:
        assert "FAILED" in result.stdout


@pytest.mark.parametrize("content", [None, b"", b"not a model"], ids=["missing", "empty", "text"])
@pytest.mark.parametrize("name", ["x.onnx", "x.pt", "x.pt2", "x.bin"])
def test_a_file_that_is_none(cli, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = cli("verify", name)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert name in result.stderr


def test_our_own_other_files_are_named(cli, tmp_path):
    example = torch.rand(1, 1, 28, 28)
    fastcnn.save(fastcnn.optimize(create_model("simple_cnn"), example, backend="torch"), tmp_path / "x.fast")
    save_file(create_model("simple_cnn").state_dict(), tmp_path / "w.safetensors")
    for name, said in [("x.fast", "fastcnn.load('x.fast')"), ("w.safetensors", "fastcnn export MODEL --weights w.safetensors")]:
        result = cli("verify", name)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert said in result.stderr


def test_an_attestation(cli, tmp_path):
    assert cli("export", "simple_cnn", "--onnx", "--attest").exit_code == 0
    file, attestation = tmp_path / "simple_cnn.onnx", tmp_path / "simple_cnn.onnx.intoto.json"
    said = json.loads(attestation.read_text())
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"name": file.name, "digest": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}}]
    assert {"parity", "runtimes", "data", "processor", "versions"} <= set(said["predicate"])
    good = cli("verify", file, "--attestation", attestation)
    assert good.exit_code == 0, good.stderr
    assert "who wrote it is for a signature to say" in " ".join(good.stdout.split())
    said["predicate"]["parity"]["onnxruntime"]["relative_error"] = 0.0
    attestation.write_text(json.dumps(said))
    edited = cli("verify", file, "--attestation", attestation)
    assert edited.exit_code == 1
    assert "says something else than the file of its parity" in edited.stderr
    said["subject"][0]["digest"]["sha256"] = "0" * 64
    attestation.write_text(json.dumps(said))
    assert "the attestation is of another file" in cli("verify", file, "--attestation", attestation).stderr
    for text in ("[]", "{}", "[" * 100_000, '{"_type": "https://in-toto.io/Statement/v1", "predicateType": 3}'):
        attestation.write_text(text)
        refused = cli("verify", file, "--attestation", attestation)
        assert (refused.exit_code, "is no in-toto statement" in refused.stderr) == (2, True)
