from __future__ import annotations

import json

import pytest
import torch
from dataset_files import write_image_folder, write_mnist
from PIL import Image

from fastcnn.export import export_onnx
from fastcnn.models import create_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.fixture
def evaluate(cli, data):
    """`evaluate("simple_cnn", …)` on the test pictures of a tiny MNIST."""
    return lambda *arguments: cli("evaluate", *arguments, "--dataset", "mnist", "--data", data)


def test_tables(evaluate):
    result = evaluate("simple_cnn", "--weights", "mnist")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["class", "pictures", "right", "recall", "precision"]
    assert [line.split()[:2] for line in lines[1:11]] == [[str(digit), "10"] for digit in range(10)]
    fields = {line.split()[0] for line in lines[12:]}
    assert fields == {"source", "runtime", "top-1", "top-5", "loss"}
    assert result.stderr == ""


def test_json_of_several_and_a_comparison(evaluate, tmp_path):
    export_onnx(create_model("simple_cnn", seed=1), tmp_path / "other.onnx", torch.zeros(1, 1, 28, 28))
    result = evaluate("--compare", "simple_cnn@torch", "other.onnx", "--sheet", "sheet.png", "--json", "--limit", 60)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert [row["source"] for row in answer["results"]] == ["simple_cnn@torch", "other.onnx"]
    assert [row["runtime"] for row in answer["results"]] == ["torch", "onnxruntime"]
    assert [row["pictures"] for row in answer["results"]] == [60, 60]
    assert [row["counted_by"] for row in answer["results"]] == ["position", "position"]
    assert 0 <= answer["results"][0]["top1"] <= answer["results"][0]["top5"] <= 1
    assert sum(map(sum, answer["results"][0]["confusion"])) == 60
    compared = answer["compare"]
    assert compared["sources"] == ["simple_cnn@torch", "other.onnx"]
    assert compared["differing"] == len(compared["pictures"]) > 0
    assert len(set(compared["pictures"][0]["answers"])) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert "simple_cnn@torch has seeded random weights (seed 0)" in result.stderr
    same = evaluate("--compare", "simple_cnn", "simple_cnn@torch", "--weights", "mnist")
    assert same.exit_code == 0, same.stderr
    assert "0 of 100 pictures" in same.stdout


def test_labels_that_match_no_class(cli, evaluate, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    assert cli("export", "simple_cnn", "-o", "named.onnx", "--weights", "mnist", "--labels", "labels.txt").exit_code == 0
    named = evaluate("named.onnx", "--json")
    assert "note: named.onnx names its classes otherwise than mnist test (a, b, c, …; 0, 1, 2, …): they are counted by position" in named.stderr
    assert json.loads(named.stdout)["results"][0]["counted_by"] == "position"
    own = evaluate("simple_cnn", "--weights", "mnist", "--json")
    assert own.stderr == ""
    assert json.loads(own.stdout)["results"][0]["counted_by"] == "name"


def test_confusion_matrix_and_force(evaluate, tmp_path):
    drawing = ["simple_cnn", "--weights", "mnist", "--confusion", "matrix.png"]
    first = evaluate(*drawing)
    assert first.exit_code == 0, first.stderr
    assert "drawn in matrix.png" in first.stderr
    before = (tmp_path / "matrix.png").read_bytes()
    assert evaluate(*drawing).exit_code == 2
    assert evaluate(*drawing, "--force").exit_code == 0
    assert (tmp_path / "matrix.png").read_bytes() == before


def test_threshold(evaluate):
    assert evaluate("simple_cnn", "--weights", "mnist", "--min-top1", 0).exit_code == 0
    low = evaluate("simple_cnn", "--weights", "mnist", "--min-top1", 1)
    assert low.exit_code == 1
    assert "error: the top-1 accuracy of simple_cnn is below 1" in low.stderr
    assert "top-1" in low.stdout


def test_wrong_requests(cli, evaluate, tmp_path):
    (tmp_path / "there.png").touch()
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    write_image_folder(tmp_path / "pictures")
    cases = [
        ([], "name a model or file to evaluate"),
        (["simple_cnm"], "did you mean simple_cnn"),
        (["nowhere.onnx"], "nowhere.onnx does not exist"),
        (["text.onnx"], "text.onnx is truncated, or neither ONNX"),
        (["vgg_cifar10"], "mnist has grey pictures, and this model takes 3 channel(s)"),
        (["simple_cnn", "--weights", "imagenet"], "'mnist', which this package holds"),
        (["text.onnx", "--weights", "mnist"], "text.onnx holds weights already"),
        (["simple_cnn", "--backend", "tensorrt"], "tensorrt"),
        (["text.onnx", "--num-classes", "3"], "are for the name of a model, and text.onnx is a file"),
        (["simple_cnn", "--num-classes", "3"], "simple_cnn has 3 classes, and"),
        (["simple_cnn", "--sheet", "s.png"], "give --compare A B"),
        (["simple_cnn", "residual_mnist", "--confusion", "c.png"], "name one"),
        (["simple_cnn", "--confusion", "there.png"], "there.png exists: --force"),
        (["simple_cnn", "--confusion", "no/c.png"], "there is no folder no"),
        (["--compare", "simple_cnn", "simple_cnn"], "not simple_cnn twice"),
        (["simple_cnn", "--split", "validation"], "mnist has no validation part"),
    ]
    requests = [(evaluate(*arguments), said) for arguments, said in cases]
    requests.append(
        (cli("evaluate", "nin_cifar10", "--dataset", "imagefolder", "--data", "pictures"), "nin_cifar10 has 10 classes, and pictures has 3")
    )
    for result, said in requests:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert len(lines) == 1, lines
        assert said in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "text.onnx", "there.png"]
