"""Options and classes that a weight file brings with it, and the names of weights that ship."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

import fastcnn
from fastcnn.errors import RequestError, WeightsError
from fastcnn.models import checkpoints, create_model, creation, fit, lineage, list_models, load_weights, model_spec, registry, weights
from fastcnn.models.weights import describe_weights, open_weights, shipped_weights
from fastcnn.training.checkpoint import save_weights


def description(model, **more):
    info = model.fastcnn_info
    return {"model": info.name, "options": dict(info.options), "preprocessing": info.preprocessing.to_dict(), **more}


def test_public_names_are_one_function():
    assert fastcnn.create_model is create_model is creation.create_model
    assert not hasattr(registry, "create_model")


def test_no_circle():
    """The table knows neither of the others, and weights do not know creation: not even inside a function."""
    allowed = {
        registry: set(),
        checkpoints: set(),
        fit: {"registry"},
        lineage: {"registry"},
        weights: {"registry", "checkpoints", "fit", "lineage"},
        creation: {"registry", "weights", "random_weights"},
    }
    for module, below in allowed.items():
        tree = ast.parse(inspect.getsource(module))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.rpartition(".")[2] for name in imported if name.startswith("fastcnn.models")} <= below


def test_options_come_from_the_file_unless_they_are_given(tmp_path):
    source = create_model("googlenet_cifar10", num_classes=4, aux_logits=False)
    save_weights(source, description(source, classes=["a", "b", "c", "d"]), tmp_path / "w.safetensors")
    model = create_model("googlenet_cifar10", tmp_path / "w.safetensors")
    assert model.fastcnn_info.options == {"num_classes": 4, "aux_logits": False, "dropout_aux": 0.5}
    assert model.fastcnn_info.categories == ("a", "b", "c", "d")
    torch.testing.assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
    given = create_model("googlenet_cifar10", tmp_path / "w.safetensors", dropout_aux=0.1)
    assert given.fastcnn_info.options["dropout_aux"] == 0.1
    with pytest.raises(WeightsError, match="missing"):
        create_model("googlenet_cifar10", tmp_path / "w.safetensors", aux_logits=True)
    with pytest.raises(WeightsError, match="does not fit nin_cifar10"):
        create_model("nin_cifar10", tmp_path / "w.safetensors")


def test_transform_input_is_told_by_the_file(tmp_path):
    source = create_model("inception_v3", num_classes=2, aux_logits=False, transform_input=True)
    save_weights(source, description(source), tmp_path / "w.safetensors")
    assert create_model("inception_v3", tmp_path / "w.safetensors").fastcnn_info.options["transform_input"] is True


def test_a_damaged_description(tmp_path):
    source = create_model("simple_cnn")
    for damaged in ({"num_classes": 0}, {"num_classes": "many"}):
        told = description(source)
        save_weights(source, told | {"options": told["options"] | damaged}, tmp_path / "w.safetensors")
        with pytest.raises(RequestError, match="num_classes of simple_cnn must be a positive whole number"):
            create_model("simple_cnn", tmp_path / "w.safetensors")


def test_names_of_weights_that_ship():
    named = {name: model_spec(name).shipped_weights for name in list_models() if model_spec(name).shipped_weights}
    assert named == dict.fromkeys(["inception_mnist", "residual_mnist", "simple_cnn"], ("mnist",))
    for name in named:
        assert describe_weights(shipped_weights(name, "mnist"))["model"] == name
        assert open_weights(name, "mnist").options == {"num_classes": 10}
    assert shipped_weights("vgg_cifar10", "mnist") is None
    loaded = load_weights(create_model("simple_cnn"), "mnist")
    assert loaded.fastcnn_info.weights == "shipped: mnist"


def test_a_folder_of_the_same_name_does_not_hide_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert create_model("simple_cnn", "mnist").fastcnn_info.weights == "shipped: mnist"


def test_unknown_names():
    with pytest.raises(
        WeightsError,
        match="for simple_cnn, so 'minst' means nothing here, and there is no such file: give 'mnist', which",
    ):
        create_model("simple_cnn", "minst")
    with pytest.raises(WeightsError, match="so 'mnist' means nothing here, and there is no such file: give a file"):
        create_model("vgg_cifar10", "mnist")
