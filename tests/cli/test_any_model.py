"""Every command that takes a model takes what others made: code, programs, ONNX files."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastcnn

NET = """
import torch
from torch import nn

def build(num_classes=4, width=6):
    body = nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    return nn.Sequential(*body, nn.Linear(width, num_classes))
"""
SHAPE = ("--input-shape", "3x16x16")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A folder with net.py, and files that PyTorch alone made of its model: net.onnx, soft.onnx (of batch 1), net.pt, net.pt2, net.pth."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "net.py").write_text(NET)
    space: dict = {}
    exec(NET, space)
    torch.manual_seed(5)
    model = space["build"]().eval()
    x = torch.rand(2, 3, 16, 16)
    torch.save(model.state_dict(), folder / "net.pth")
    torch.export.save(torch.export.export(model, (x[:1],)), folder / "net.pt2")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(model, x).save(folder / "net.pt")
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(model, (x,), folder / "net.onnx", dynamo=True, external_data=False, dynamic_shapes=dynamic, verbose=False)
        soft = torch.nn.Sequential(model, torch.nn.Softmax(1))
        torch.onnx.export(soft, (x[:1],), folder / "soft.onnx", dynamo=True, external_data=False, verbose=False)
    return folder


@pytest.fixture
def at(cli, theirs, monkeypatch):
    """The command line in that folder; what it writes goes into the test's own."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(theirs)
    return cli


def test_the_road_of_ones_own_code(at, theirs, tmp_path):
    file = tmp_path / "net.onnx"
    wide = ("--model-arg", "width=5", "--num-classes", 3)
    exported = at("export", "net.py:build", "-o", file, *SHAPE, *wide, "--json")
    assert exported.exit_code == 0, exported.stderr
    assert "note: runs the code of net.py:build" in exported.stderr
    answer = json.loads(exported.stdout)
    assert answer["metadata"]["model"]["name"] == "net.py:build"
    assert answer["metadata"]["model"]["options"] == {"width": 5, "num_classes": 3}
    assert answer["metadata"]["input"]["preprocessing"] is None, "nobody declared one, and a guess does not go into a file"
    assert answer["metadata"]["outputs"][0]["shape"] == ["batch", 3]

    told = at("info", "net.py:build", *SHAPE, *wide, "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["totals"]["parameters"] == 5 * 27 + 5 + 10 + 18

    described = at("info", file, "--json")
    assert described.exit_code == 0, described.stderr
    found = json.loads(described.stdout)
    assert [(one["name"], one["shape"], one["dtype"]) for one in found["inputs"]] == [("input", [None, 3, 16, 16], "float32")]
    assert found["metadata"]["model"]["name"] == "net.py:build"
    assert found["operators"]["Conv"] == 1


def test_the_default_name_of_a_file(at, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = at("export", f"{theirs}/net.py:build", "--pt2", *SHAPE)
    assert result.exit_code == 0, result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["build.pt2"]


def test_optimize_saves_a_module(at, theirs, tmp_path):
    sizes = []
    for slim in ([], ["--slim"]):
        file = tmp_path / f"net{len(slim)}.fast"
        result = at("optimize", "net.py:build", "-o", file, *SHAPE, "--weights", "net.pth", "--backend", "onnxruntime", "--json", *slim)
        assert result.exit_code == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["parity"]["passed"] is True
        assert answer["backend"] == "onnxruntime"
        assert answer["bytes"] == file.stat().st_size
        sizes.append(answer["bytes"])
        fast = fastcnn.load(file)
        x = torch.rand(3, 3, 16, 16)
        torch.testing.assert_close(fast(x), torch.jit.load(theirs / "net.pt")(x), atol=1e-5, rtol=1e-5)
    assert sizes[1] < sizes[0]
    assert "exists: --force" in at("optimize", "simple_cnn", "-o", file).stderr
    checked = at("verify", file, "--against", "net.py:build", "--weights", "net.pth")
    assert checked.exit_code == 0, checked.stderr
    assert at("verify", file, "--against", "net.py:build", "--model-arg", "width=7").exit_code == 1


def test_optimize_prints_a_report(at, tmp_path):
    result = at("optimize", "simple_cnn", "-o", tmp_path / "s.fast", "--weights", "mnist", "--backend", "torch", "--precision", "bf16")
    assert result.exit_code == 0, result.stderr
    fields = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert fields["backend"].startswith("torch, ")
    assert fields["input"] == "N×1×28×28 bfloat16"
    assert "bfloat16" in fields["parity"]
    assert len(fields["sha256"]) == 64


@pytest.mark.parametrize(
    ("file", "options", "runtimes"),
    [
        ("net.onnx", [], "onnxruntime and openvino"),
        ("net.pt", SHAPE, "torch"),
        ("net.pt2", [], "torch"),
        ("soft.onnx", [], "held against the softmax of net.py:build"),
    ],
)
def test_a_file_of_others_against_its_model(at, file, options, runtimes):
    result = at("verify", file, "--against", "net.py:build", "--weights", "net.pth", *options)
    assert result.exit_code == 0, result.stderr
    assert "passed" in result.stdout
    assert runtimes in result.stdout
    assert ("batch 1, 2, 5" in result.stdout) == (file in ("net.onnx", "net.pt"))


def test_against_another_file(at):
    result = at("verify", "net.pt2", "--against", "net.onnx")
    assert result.exit_code == 0, result.stderr
    assert "net.onnx ran in ONNX Runtime in float32" in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["net.onnx", "--against", "net.py:build", "--weights", "net.pth", "--seed"], 2, "no such option"),
        (["net.onnx", "--against", "net.py:build"], 1, "relative error"),
        (["net.onnx", "--against", "net.py:build", "--num-classes", 9], 2, "net.onnx has 4 classes, and net.py:build 9"),
        (["net.onnx", "--against", "simple_cnn"], 2, "net.onnx takes inputs of 3×16×16, and simple_cnn of 1×28×28"),
        (["net.onnx", "--against", "net.py:build", "--input-shape", "3x17x17"], 2, "takes inputs of 3×16×16, and net.py:build of 3×17×17"),
        (["net.onnx", "--weights", "net.pth"], 2, "belong to the model of --against"),
        (["gone.onnx", "--against", "simple_cnn"], 2, "gone.onnx does not exist"),
        (["net.pth", "--against", "simple_cnn"], 2, "holds weights without a network"),
        (["net.onnx", "--against", "net.onx"], 2, "unknown model"),
    ],
)
def test_against_what_does_not_fit(at, args, code, said):
    result = at("verify", *args)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert "defect" not in result.stderr


def test_pictures_for_a_file_of_others(at, tmp_path):
    """Without a description of its input the usual one is taken, and said."""
    Image.new("RGB", (20, 20), (200, 30, 90)).save(tmp_path / "p.png")
    answers = {}
    for source in ("net.onnx", "soft.onnx", "net.pt2", "net.py:build"):
        own = [*SHAPE, "--weights", "net.pth"] if source == "net.py:build" else []
        result = at("predict", source, tmp_path / "p.png", "--json", *own)
        assert result.exit_code == 0, result.stderr
        assert "does not say how a picture becomes its input: assumed is RGB, resized to 18 on the short side" in result.stderr
        answers[source] = {guess["class"]: guess["probability"] for guess in json.loads(result.stdout)["top"]}
    assert answers["net.onnx"] == pytest.approx(answers["net.py:build"], abs=1e-5)
    assert answers["soft.onnx"] == pytest.approx(answers["net.py:build"], abs=1e-5)
    assert answers["net.pt2"] == pytest.approx(answers["net.py:build"], abs=1e-5)


def test_bench_of_code_and_of_a_file(at):
    result = at("bench", "net.py:build", *SHAPE, "--batch-size", 1, "--rounds", 1, "--peers", "eager,fastcnn_torch", "--json", "-")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["groups"][0]["model"] == "net.py:build"
    assert report["settings"]["weights"] == {"net.py:build": "as net.py:build makes them (seed 0)"}
    result = at("bench", "soft.onnx", "--batch-size", 1, "--rounds", 1, "--json", "-")
    assert result.exit_code == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)["groups"][0]["rows"]}
    assert set(rows) == {"onnxruntime", "openvino"}
    assert all(row["status"] == "timed" for row in rows.values()), rows


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bench", "net.onnx", "--peers", "fastcnn*"], "net.onnx is an ONNX file, which onnxruntime and openvino run"),
        (["bench", "soft.onnx", "--batch-size", 4], "soft.onnx takes a batch of 1 alone: give --batch-size 1"),
        (["bench", "net.onnx", "--precision", "fp16"], "leave --device and --precision out"),
        (["export", "net.onnx", "--pt2"], "is an ONNX file, from which PyTorch gets no model"),
        (["optimize", "net.onnx", "-o", "x.fast"], "is an ONNX file, from which PyTorch gets no model"),
        (["export", "net.pth", "--onnx"], "name the model, as in MODEL --weights net.pth"),
        (["export", "net.py", "--onnx"], "name the function or class in it that makes the model, as in net.py:build"),
        (["export", "mobilenet_v3_large", "--onnx"], "did you mean torchvision:mobilenet_v3_large?"),
        (["export", "simple_cnn", "--onnx", "--input-shape", "1x28x28", "--image-size", 28], "both say how large the input is"),
        (["train", "torchvision:resnet18", "--dataset", "mnist", "--data", "."], "unknown model 'torchvision:resnet18'"),
        (["optimize", "simple_cnn", "--precision", "tf32"], "tf32 is a mode of NVIDIA GPUs"),
        (["optimize", "simple_cnn", "--precision", "int8"], "precision int8 needs --calibration"),
        (["optimize", "simple_cnn", "--precision", "auto"], "precision auto needs --max-error"),
        (["optimize", "simple_cnn", "--precision", "bf16", "--max-error", "0.1"], "--max-error belongs to --precision int8 or auto"),
        (["optimize", "simple_cnn", "--calibration", "x", "--max-accuracy-drop", "0.1"], "--calibration and --max-accuracy-drop belong to"),
        (["optimize", "simple_cnn", "--precision", "int8", "--calibration", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_a_command_does_not_take(at, theirs, args, said):
    before = sorted(theirs.iterdir())
    result = at(*args)
    assert result.exit_code == 2, result.stderr
    assert said in result.stderr
    assert sorted(theirs.iterdir()) == before
