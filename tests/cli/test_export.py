from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from dataset_files import write_mnist
from PIL import Image

import fastcnn.data
from fastcnn.errors import ParityError
from fastcnn.export import exporter
from fastcnn.export.exporter import export_file
from fastcnn.export.formats import ONNX
from fastcnn.export.options import ExportOptions
from fastcnn.models import create_model


@pytest.mark.parametrize(("flag", "suffix"), [("--onnx", ".onnx"), ("--torchscript", ".pt"), ("--pt2", ".pt2")])
def test_format_by_flag_and_default_name(cli, tmp_path, flag, suffix):
    result = cli("export", "simple_cnn", flag)
    assert result.exit_code == 0, result.stderr
    file = tmp_path / f"simple_cnn{suffix}"
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    assert hashlib.sha256(file.read_bytes()).hexdigest() in result.stdout
    assert f"{file.stat().st_size:,} bytes" in result.stdout
    assert "parity" in result.stdout
    assert "seeded random weights (seed 0)" in result.stderr
    assert cli("verify", file).exit_code == 0


def test_the_end_of_an_export_is_what_a_deployer_needs(cli):
    result = cli("export", "simple_cnn", "-o", "my net.onnx", "--preprocess", "normalize")
    assert result.exit_code == 0, result.stderr
    fields = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert fields["input"] == "input batch×28×28×1 uint8, NHWC"
    assert fields["output"] == "logits batch×10 float32"
    assert fields["opset"] == "13"
    assert fields["preprocessing"].startswith("before the file, which scales and normalises: L, ")
    assert len(fields["sha256"]) == 64
    assert fields["next"] == "fastcnn verify 'my net.onnx'"
    assert fields["or"] == "fastcnn predict 'my net.onnx' PICTURE"
    assert "nothing to do" not in result.stdout


def test_stages_are_said_where_a_person_watches(terminal):
    shown = terminal("export", "simple_cnn", "--onnx")
    # A stage shorter than the spinner's turn is not drawn.
    assert any(f"exporting simple_cnn to simple_cnn.onnx: {stage}" in shown for stage in ("capture", "lower to ONNX", "check in onnxruntime"))


def test_stages_of_an_export(tmp_path):
    stages: list[str] = []
    options = ExportOptions(format=ONNX, path=tmp_path / "net.onnx")
    export_file(create_model("simple_cnn"), torch.rand(1, 1, 28, 28), options, stages.append)
    assert {"capture", "lower to ONNX", "check in onnxruntime"} <= set(stages)


def test_format_by_suffix_and_json(cli, tmp_path):
    (tmp_path / "out").mkdir()
    result = cli("export", "simple_cnn", "-o", "out/net.onnx", "--json", "--batch-size", 2, "--softmax", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    file = tmp_path / answer["path"]
    assert file.samefile(tmp_path / "out" / "net.onnx")
    assert answer["format"] == "onnx"
    assert answer["bytes"] == file.stat().st_size
    assert answer["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert answer["parity"]["passed"] is True
    assert answer["passes"]


def test_json_is_alone_on_stdout_of_a_real_process(fastcnn_process):
    done = fastcnn_process("export", "simple_cnn", "--onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == "onnx"
    assert "seeded random weights" in done.stderr


def test_weights_are_used_and_no_longer_random(cli, tmp_path):
    torch.save(create_model("simple_cnn", seed=7).state_dict(), tmp_path / "w.pth")
    loaded = cli("export", "simple_cnn", "-o", "loaded.onnx", "--weights", "w.pth", "--json")
    seeded = cli("export", "simple_cnn", "-o", "seeded.onnx", "--seed", 7, "--json")
    assert loaded.exit_code == seeded.exit_code == 0, loaded.stderr + seeded.stderr
    assert "random" not in loaded.stderr
    assert "seed 7" in seeded.stderr
    digests = [json.loads(result.stdout)["metadata"]["model"]["weights_sha256"] for result in (loaded, seeded)]
    assert digests[0] == digests[1]


def test_the_precision_may_be_written_in_capitals(cli):
    result = cli("export", "simple_cnn", "--onnx", "--precision", "FP16", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metadata"]["precision"] == "fp16"


def test_a_tolerance_is_held_by_export_and_verify(cli, tmp_path):
    refused = cli("export", "simple_cnn", "--onnx", "--tolerance", "1e-12")
    assert refused.exit_code == 1
    assert "is above 1e-12" in refused.stderr
    assert not list(tmp_path.iterdir())
    assert cli("export", "simple_cnn", "--onnx", "--tolerance", "0.002").exit_code == 0
    assert "bound 0.002" in cli("verify", "simple_cnn.onnx").stdout


def test_labels_and_number_of_classes(cli, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    result = cli("export", "simple_cnn", "--onnx", "--num-classes", 3, "--labels", "labels.txt", "--json")
    assert result.exit_code == 0, result.stderr
    assert "bird" in result.stdout


def test_force_overwrites(cli, tmp_path):
    file = tmp_path / "simple_cnn.onnx"
    file.write_text("something of mine")
    refused = cli("export", "simple_cnn", "--onnx")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert file.read_text() == "something of mine"
    assert cli("export", "simple_cnn", "--onnx", "--force").exit_code == 0
    assert cli("verify", file).exit_code == 0


def test_a_file_that_resizes_pictures_of_one_size_says_so_to_those_who_give_another(cli):
    result = cli("export", "simple_cnn", "-o", "m.onnx", "--opset", "min", "--preprocess", "resize", "--picture-size", "40x30")
    assert result.exit_code == 0, result.stderr
    assert "input batch×40×30×1 uint8, NHWC" in result.stdout
    for size in ((30, 40), (40, 30)):
        Image.new("L", size, 90).save(f"{size[0]}.png")
    assert cli("predict", "m.onnx", "30.png").exit_code == 0
    refused = cli("predict", "m.onnx", "40.png")
    assert refused.exit_code != 0
    assert "the file takes pictures of 40×30 (height × width), and this one is 30×40" in refused.stderr


def test_what_a_runtime_changes_is_said(cli):
    result = cli("export", "simple_cnn", "-o", "m.onnx", "--for", "tract", "--json")
    assert result.exit_code == 0, result.stderr
    assert "note: for tract: batches of 1 instead of any size: it cannot unify a named batch" in result.stderr
    assert json.loads(result.stdout)["metadata"]["input"]["shape"][0] == 1


BAD = {
    "no format": (["export", "simple_cnn"], "--onnx, --torchscript or --pt2"),
    "suffix of no format": (["export", "simple_cnn", "-o", "x.bin"], "x.bin"),
    "two formats": (["export", "simple_cnn", "--onnx", "--pt2"], "--onnx and --pt2"),
    "flag against suffix": (["export", "simple_cnn", "--onnx", "-o", "x.pt2"], "disagree"),
    "opset of no ONNX": (["export", "simple_cnn", "--pt2", "--opset", "18"], "--opset"),
    "unknown opset": (["export", "simple_cnn", "--onnx", "--opset", "999"], "999"),
    "opset too old": (["export", "simple_cnn", "--onnx", "--opset", "1"], "or none for the lowest that the model needs"),
    "opset of words": (["export", "simple_cnn", "--onnx", "--opset", "newest"], "or the word min"),
    "picture size of words": (["export", "simple_cnn", "--onnx", "--preprocess", "resize", "--picture-size", "big"], "HEIGHTxWIDTH"),
    "picture size without a resize": (["export", "simple_cnn", "--onnx", "--picture-size", "20x20"], "goes with --preprocess resize"),
    "no such runtime": (["export", "simple_cnn", "--onnx", "--for", "tensor-rt"], "did you mean tensorrt"),
    "a precision of no use there": (["export", "simple_cnn", "--onnx", "--for", "tract", "--precision", "fp16"], "--for tract and --precision fp16"),
    "any batch there": (["export", "simple_cnn", "--onnx", "--for", "ncnn", "--batch-size", "dynamic"], "--for ncnn and --batch-size dynamic"),
    "a format that it does not open": (["export", "simple_cnn", "--pt2", "--for", "web"], "onnxruntime-web opens no .pt2 file: give --onnx"),
    "int8": (["export", "simple_cnn", "--onnx", "--precision", "int8"], "needs --calibration"),
    "a precision that no file has": (["export", "simple_cnn", "--onnx", "--precision", "bf16"], "there are fp32, fp16, int8"),
    "batch of words": (["export", "simple_cnn", "--onnx", "--batch-size", "many"], "'many'"),
    "batch of zero": (["export", "simple_cnn", "--onnx", "--batch-size", "0"], "'0'"),
    "no such folder": (["export", "simple_cnn", "-o", "missing/x.onnx"], "missing"),
    "output is a folder": (["export", "simple_cnn", "--onnx", "-o", "."], "folder"),
    "output into a new folder": (["export", "simple_cnn", "--onnx", "-o", "newdir/"], "newdir/ is a folder: give -o the name"),
    "output to stdout": (["export", "simple_cnn", "--onnx", "-o", "-"], "none goes to stdout"),
    "unknown preprocess": (["export", "simple_cnn", "--onnx", "--preprocess", "foo"], "'--preprocess': 'foo' is not one of"),
    "no such weights": (["export", "simple_cnn", "--onnx", "--weights", "nowhere.pth"], "nowhere.pth"),
    "weights and seed": (["export", "simple_cnn", "--onnx", "--weights", "w.pth", "--seed", "1"], "--seed"),
    "no such labels": (["export", "simple_cnn", "--onnx", "--labels", "nowhere.txt"], "nowhere.txt"),
    "image too small": (["export", "simple_cnn", "--onnx", "--image-size", "4"], "4"),
    "wrong image size": (["export", "simple_cnn", "--onnx", "--image-size", "64"], "64"),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD)
def test_bad_request_is_one_line_and_writes_nothing(cli, tmp_path, args, said):
    result = cli(*args)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to, as /proc on Linux")
def test_unwritable_folder_is_found_before_the_work(cli):
    result = cli("export", "simple_cnn", "-o", "/proc/self/x.onnx")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: /proc/self/x.onnx cannot be written: ")
    assert "random" not in result.stderr


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text"])
def test_bad_weight_file(cli, tmp_path, damage):
    file = tmp_path / "w.pth"
    torch.save(create_model("residual_mnist" if damage == "foreign" else "simple_cnn").state_dict(), file)
    if damage != "foreign":
        file.write_bytes(file.read_bytes()[:2000] if damage == "truncated" else b"not weights at all")
    result = cli("export", "simple_cnn", "--onnx", "--weights", "w.pth")
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert "w.pth" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]


def test_failed_check_is_code_1(cli, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ParityError("simple_cnn.onnx differs from its reference by 0.25")

    monkeypatch.setattr(exporter, "export_file", fail)
    result = cli("export", "simple_cnn", "--onnx")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: simple_cnn.onnx differs from its reference by 0.25"
    assert not list(tmp_path.iterdir())


def test_int8_from_a_folder_of_pictures(cli, tmp_path):
    pictures = Path(fastcnn.data.__file__).with_name("digits")
    given = ("simple_cnn", "--weights", "mnist", "--onnx", "--precision", "int8")
    result = cli("export", *given, "--calibration", pictures, "--save-ranges", "ranges.json", "--sensitivity", "--max-error", "0.3")
    assert result.exit_code == 0, result.stderr
    assert "8 pictures are few" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["layer", "weights", "activations"]
    assert {line.split()[0] for line in lines[1:4]} == {"conv1", "conv2", "fc"}
    assert "8 pictures of digits, 2 others to judge by" in result.stdout
    assert "3 of 3 layers" in result.stdout
    assert cli("verify", "simple_cnn.onnx").exit_code == 0
    result = cli("export", *given, "--calibration", "ranges.json", "--max-error", "1e-7", "-o", "again.onnx")
    assert result.exit_code == 1
    assert "misses its limits in int8" in result.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ranges.json", "simple_cnn.onnx"]


def test_int8_judged_by_labels(cli, tmp_path):
    pictures = Path(fastcnn.data.__file__).with_name("digits")
    given = ("simple_cnn", "--weights", "mnist", "--onnx", "--precision", "int8", "--calibration", pictures, "--max-error", "0.3")
    data = write_mnist(tmp_path / "data", test=50)
    result = cli("export", *given, "--dataset", "mnist", "--data", data, "-o", "m.onnx")
    assert result.exit_code == 0, result.stderr
    assert "judged by 50 of the 50 pictures of mnist test" in result.stdout
    assert re.search(r"accuracy \d+\.\d\d% \(\d+\.\d\d% before\)", result.stdout)
    assert cli("verify", "m.onnx").exit_code == 0
    refused = cli("export", *given, "--dataset", "mnist", "--data", tmp_path, "-o", "n.onnx")
    assert refused.exit_code == 2
    assert "there is no mnist in" in refused.stderr
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "precision int8 needs --calibration"),
        (["--calibration", "nowhere"], "--calibration is for --precision int8"),
        (["--precision", "int8", "--max-error", "0.1"], "--max-error without --calibration"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere does not exist"),
        (["--dataset", "mnist"], "--dataset and --data go together"),
        (["--precision", "int8", "--calibration", "nowhere", "--data", "x"], "--dataset and --data go together"),
        (["--dataset", "mnist", "--data", "x"], "--dataset judges the accuracy of an int8 file"),
        (["--precision", "fp16", "--calibration", "x", "--dataset", "mnist", "--data", "x"], "--dataset judges the accuracy of an int8 file"),
    ],
)
def test_int8_without_what_it_needs(cli, tmp_path, options, message):
    result = cli("export", "simple_cnn", "--onnx", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
