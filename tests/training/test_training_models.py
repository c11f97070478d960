"""The models that the lectures train on CIFAR-10, and the two Inception networks with their auxiliary heads at full size."""

from __future__ import annotations

import pytest
import torch
from dataset_files import write_cifar10, write_image_folder

import fastcnn
from fastcnn.export import export_onnx
from fastcnn.models import create_model, create_untrained_model
from fastcnn.training.recipe import Recipe
from fastcnn.training.setup import train

CIFAR_MODELS = ["vgg_cifar10", "nin_cifar10", "googlenet_cifar10", "resnet18_cifar10"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Pictures of two of the ten classes: which ones these are is soon learnt."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    return write_cifar10(tmp_path / "data", train=70, test=10, classes=2)


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_loss_falls_and_the_checkpoint_exports(name, data, tmp_path):
    result = train(name, "cifar10", data, tmp_path / "run", Recipe(epochs=2, batch_size=15, validation=10))
    first, last = result.history[0], result.history[-1]
    assert last.train_loss < first.train_loss
    assert last.validation_loss < 2.2  # it began at ln 10
    assert (first.aux_loss > 0) == (name == "googlenet_cifar10")
    assert result.test.pictures == 10
    model = create_model(name, result.weights)
    report = export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert report.parity.passed
    assert report.metadata["labels"] == [f"class{label}" for label in range(10)]
    assert report.metadata["model"]["weights"] == f"file: {name}.safetensors"


def test_auxiliary_losses_count(data, tmp_path):
    """Heads that count for nothing keep their weights; others move, and move the trunk otherwise."""
    states = {}
    for weight in (0.0, 0.3):
        recipe = Recipe(epochs=1, batch_size=20, validation=10, aux_weight=weight)
        result = train("googlenet_cifar10", "cifar10", data, tmp_path / str(weight), recipe)
        assert (result.history[0].aux_loss > 0) == (weight > 0)
        states[weight] = create_model("googlenet_cifar10", result.weights).state_dict()
    start = create_untrained_model("googlenet_cifar10", seed=0).state_dict()
    for head in ("aux1.fc.3.weight", "aux2.fc.3.weight"):
        assert torch.equal(states[0.0][head], start[head])
        assert not torch.equal(states[0.3][head], start[head])
    trunk = "stem.0.weight"
    assert not torch.equal(states[0.0][trunk], start[trunk])
    assert not torch.equal(states[0.0][trunk], states[0.3][trunk])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_full_size_with_auxiliary_heads(name, tmp_path):
    """Two steps on two pictures each, at 224 and 299 pixels."""
    folder = write_image_folder(tmp_path / "pictures", side=320, per_class=3, classes=("a", "b"))
    result = train(name, "imagefolder", folder, tmp_path / "run", Recipe(epochs=1, batch_size=2, validation=2))
    (record,) = result.history
    assert record.aux_loss > 0
    trained, start = create_model(name, result.weights), create_untrained_model(name, num_classes=2)
    heads = {"googlenet": ("aux1.fc2.weight", "aux2.fc2.weight"), "inception_v3": ("AuxLogits.fc.weight",)}[name]
    for key in (*heads, "fc.weight"):
        assert not torch.equal(trained.state_dict()[key], start.state_dict()[key])
    example = torch.rand(1, *trained.fastcnn_info.input_size, generator=torch.Generator().manual_seed(0))
    fast = fastcnn.optimize(trained, example, backend="torch")
    assert tuple(fast(example).shape) == (1, 2)
