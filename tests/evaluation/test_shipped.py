"""The weights that ship, on real MNIST: they reach the accuracies of their sources, in every runtime alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastcnn
import fastcnn.models
from fastcnn.data.datasets import open_dataset
from fastcnn.evaluation.evaluator import evaluate, load_candidate
from fastcnn.export import export_onnx, export_pt2, export_torchscript
from fastcnn.models import create_model, model_spec
from fastcnn.models.weights import describe_weights

# Of 10,000 test pictures, and the epochs that the source took.
LEAST = {"simple_cnn": (9800, 9), "inception_mnist": (9870, 10), "residual_mnist": (9900, 10)}
FOLDER = Path(fastcnn.models.__file__).with_name("shipped")


@pytest.fixture(scope="module")
def mnist_test(shared_dir):
    return open_dataset("mnist", shared_dir / "data", "test", model_spec("simple_cnn").preprocessing)


@pytest.mark.parametrize("name", LEAST)
def test_the_file_tells_its_history(name):
    model = create_model(name, weights="mnist")
    assert model.fastcnn_info.weights == "shipped: mnist"
    assert model.fastcnn_info.categories == tuple("0123456789")
    description = describe_weights(FOLDER / f"{name}-mnist.safetensors")
    least, epochs = LEAST[name]
    assert description["model"] == name
    assert description["recipe"]["epochs"] == len(description["history"]) == epochs
    assert description["pictures"]["train"] + description["pictures"]["validation"] == 60_000
    assert description["test"]["pictures"] == 10_000
    assert description["test"]["correct"] >= least
    assert description["preprocessing"] == model_spec(name).preprocessing.to_dict()


def test_they_are_small():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{name}-mnist.safetensors" for name in LEAST)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", LEAST)
def test_right_answers_on_real_mnist(name, mnist_test):
    result = evaluate(load_candidate(name, weights="mnist"), mnist_test)
    assert result.metrics.pictures == 10_000
    assert result.metrics.correct >= LEAST[name][0]
    told = describe_weights(FOLDER / f"{name}-mnist.safetensors")["test"]
    # The last bits depend on the processor.
    assert abs(result.metrics.correct - told["correct"]) <= 1
    assert result.metrics.loss == pytest.approx(told["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_every_runtime_counts_the_same(name, mnist_test, tmp_path):
    """A thousand of the test pictures; float16 may differ by one."""
    model = create_model(name, weights="mnist")
    expected = evaluate(load_candidate(name, weights="mnist"), mnist_test, limit=1000).metrics.correct
    example = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    files = {"a.onnx": export_onnx, "a.pt": export_torchscript, "a.pt2": export_pt2}
    for file, export in files.items():
        export(model, tmp_path / file, example)
    export_onnx(model, tmp_path / "half.onnx", example, precision="fp16")
    backends = [backend for backend, reason in fastcnn.engines.available_backends().items() if reason is None and backend != "triton"]
    assert "torch" in backends
    candidates = [f"{name}@{backend}" for backend in backends] + [f"{tmp_path}/{file}" for file in files]
    if "openvino" in backends:
        candidates.append(f"{tmp_path}/a.onnx@openvino")
    for candidate in candidates:
        weights = "mnist" if candidate.startswith(name) else None
        result = evaluate(load_candidate(candidate, weights=weights), mnist_test, limit=1000, source=candidate)
        assert result.metrics.correct == expected, candidate
    half = evaluate(load_candidate(f"{tmp_path}/half.onnx"), mnist_test, limit=1000)
    assert abs(half.metrics.correct - expected) <= 1
