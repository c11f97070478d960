"""Counting answers of models, modules and files, and where two of them disagree."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from dataset_files import write_image_folder, write_mnist
from PIL import Image

import fastcnn
from fastcnn.data.datasets import open_dataset
from fastcnn.errors import RequestError
from fastcnn.evaluation.evaluator import class_order, disagreements, evaluate, load_candidate, spaced, split_backend
from fastcnn.evaluation.figures import plot_confusion, plot_disagreements
from fastcnn.export import export_onnx
from fastcnn.models import create_model, model_spec
from fastcnn.prediction.loading import load_predictor

GREY = model_spec("simple_cnn").preprocessing


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return open_dataset("mnist", write_mnist(tmp_path_factory.mktemp("mnist")), "test", GREY)


def test_a_model_is_counted_as_pytorch_counts_it(pictures):
    result = evaluate(load_candidate("simple_cnn", weights="mnist"), pictures, batch_size=7)
    model = create_model("simple_cnn", "mnist")
    with torch.no_grad():
        logits = model(GREY.normalize(pictures.pixels))
    assert result.runtime == "reference"
    assert torch.equal(result.answers, logits.argmax(1))
    assert result.metrics.correct == int((logits.argmax(1) == pictures.labels).sum())
    assert result.metrics.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), pictures.labels)), rel=1e-5)


def test_modules_and_files_give_the_same(pictures, tmp_path):
    model = create_model("simple_cnn", "mnist")
    example = GREY.normalize(pictures.pixels[:2])
    export_onnx(model, tmp_path / "plain.onnx", example)
    export_onnx(model, tmp_path / "fixed.onnx", example[:1].repeat(8, 1, 1, 1), batch_size=8, softmax=True)
    fastcnn.save(fastcnn.optimize(model, example, backend="onnxruntime"), tmp_path / "saved.safetensors")
    expected = evaluate(load_candidate("simple_cnn", weights="mnist"), pictures)
    sources = {
        "simple_cnn@torch": "torch",
        "simple_cnn@onnxruntime": "onnxruntime",
        f"{tmp_path}/plain.onnx": "onnxruntime",
        f"{tmp_path}/fixed.onnx": "onnxruntime",
        f"{tmp_path}/saved.safetensors": "onnxruntime",
        f"{tmp_path}/saved.safetensors@torch": "torch",
    }
    for source, runtime in sources.items():
        weights = "mnist" if source.startswith("simple_cnn") else None
        result = evaluate(load_candidate(source, weights=weights), pictures, source=source)
        assert result.runtime == runtime
        assert torch.equal(result.answers, expected.answers), source
        assert result.metrics.loss == pytest.approx(expected.metrics.loss, rel=1e-4), source
        assert disagreements(expected, result, pictures) == []


def test_limit_is_evenly_spaced(pictures):
    assert spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert spaced(3, 5).tolist() == spaced(3, None).tolist() == [0, 1, 2]
    heard = []
    result = evaluate(load_candidate("simple_cnn"), pictures, limit=30, batch_size=20, progress=lambda *done: heard.append(done))
    assert result.indices.tolist() == spaced(100, 30).tolist()
    assert result.metrics.pictures == 30
    assert heard == [(20, 30), (30, 30)]


def test_disagreements(pictures, tmp_path):
    first, second = (evaluate(load_candidate("simple_cnn", seed=seed), pictures) for seed in (0, 1))
    found = disagreements(first, second, pictures, drawn=1)
    differ = (first.answers != second.answers).nonzero().flatten().tolist()
    assert differ
    assert [item.where for item in found] == [f"mnist test {index}" for index in differ]
    shown = found[0]
    assert all(item.pixels is None for item in found[1:])
    np.testing.assert_array_equal(shown.pixels, pictures.pixels[differ[0], 0].numpy())
    assert (shown.label, shown.first, shown.second) == tuple(str(int(of[differ[0]])) for of in (pictures.labels, first.answers, second.answers))
    for items in (found, []):
        plot_disagreements(items, tmp_path / "sheet.png", "two of them")
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.format == "PNG"
    plot_confusion(first.metrics, tmp_path / "confusion.png", "one of them")
    with Image.open(tmp_path / "confusion.png") as drawn:
        assert min(drawn.size) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "sheet.png"]


def test_classes(tmp_path):
    """A candidate that names its classes in another order is counted by name; one with another number is refused."""
    folder = write_image_folder(tmp_path / "pictures")
    model = create_model("nin_cifar10", num_classes=3)
    rgb = open_dataset("imagefolder", folder, "test", model_spec("nin_cifar10").preprocessing)
    straight = evaluate(load_predictor(model, backend="reference", categories=("cat", "dog", "owl")), rgb)
    with torch.no_grad():
        last = list(model.parameters())[-2:]
        for parameter in last:
            parameter.copy_(parameter[[2, 0, 1]])
    turned = evaluate(load_predictor(model, backend="reference", categories=("owl", "cat", "dog")), rgb)
    assert torch.equal(straight.answers, turned.answers)
    with pytest.raises(RequestError, match=r"nin_cifar10 has 10 classes, and .*pictures has 3: they do not belong together"):
        evaluate(load_candidate("nin_cifar10"), rgb)
    assert class_order(("a", "b"), ("b", "a")) == [1, 0]
    assert class_order(("a", "b"), ("a", "b")) is class_order(None, ("a",)) is class_order(("a", "b"), ("x", "y")) is None


@pytest.mark.parametrize(
    ("categories", "counted_by", "said"),
    [
        (("cat", "dog", "owl"), "name", False),
        (("owl", "cat", "dog"), "name", False),
        (None, "position", False),
        (("a", "b", "c"), "position", True),
        (("cat", "cat", "dog"), "position", True),
    ],
    ids=["the same", "another order", "none", "others", "one twice"],
)
def test_class_names_that_are_not_the_datasets_are_said(tmp_path, caplog, categories, counted_by, said):
    caplog.set_level(logging.INFO)
    folder = write_image_folder(tmp_path / "pictures")
    rgb = open_dataset("imagefolder", folder, "test", model_spec("nin_cifar10").preprocessing)
    model = create_model("nin_cifar10", num_classes=3)
    result = evaluate(load_predictor(model, backend="reference", categories=categories), rgb, source="mine")
    assert result.counted_by == counted_by
    note = f"mine names its classes otherwise than {rgb.name} ({', '.join(categories or ())}; cat, dog, owl): they are counted by position"
    assert [note in record.getMessage() for record in caplog.records] == [True] * said


def test_backend_after_an_at():
    assert split_backend("simple_cnn@openvino") == ("simple_cnn", "openvino")
    assert split_backend("me@home.onnx") == ("me@home.onnx", None)
    assert split_backend("@torch") == ("@torch", None)
