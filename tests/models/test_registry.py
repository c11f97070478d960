"""Names, options, seeds, and what a created model says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.models import ModelInfo, ModelSpec, create_model, create_untrained_model, list_models, model_spec, registry, state_dict_sha256
from fastcnn.models.registry import resolve


def test_importing_the_models_does_not_import_torch():
    code = "import sys, fastcnn.models as m; m.list_models(); m.model_spec('vgg16'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_attribute_of_the_package():
    import fastcnn.models

    with pytest.raises(AttributeError, match="has no attribute 'create_modle'"):
        fastcnn.models.create_modle  # noqa: B018


def test_names_are_sorted_as_people_do():
    assert list_models("resnet*") == ["resnet18", "resnet18_cifar10", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert list_models("vgg1[13]*") == ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn"]
    assert list_models("*mnist") == ["inception_mnist", "residual_mnist"]
    assert list_models("nothing*") == []
    assert len(list_models()) == 35


def test_unknown_model():
    with pytest.raises(UnknownNameError, match="unknown model 'inceptionv5': did you mean inception_v4 or inception_v3") as raised:
        create_model("inceptionv5")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("ResNet50", "resnet50"), ("inception-v3", "inception_v3"), ("InceptionV3", "inception_v3"), ("squeezenet1.0", "squeezenet1_0")],
)
def test_capitals_and_separators_are_forgiven(given, meant):
    assert resolve(given) == meant
    assert model_spec(given).name == meant
    assert list_models(f"{meant.upper()}*")[0] == meant


def test_forgiving_confuses_no_two_models_and_no_path():
    assert [resolve(name) for name in list_models()] == list_models()
    assert len({registry._letters(name) for name in list_models()}) == len(list_models())
    assert resolve("./resnet50") is None
    assert create_model("Simple-CNN").fastcnn_info.name == "simple_cnn"


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf", "shufflenet", "convnext_tiny"])
def test_another_architecture_is_no_suggestion(name):
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}': `fastcnn list` shows the names") as raised:
        model_spec(name)
    assert raised.value.near == []


def test_duplicates_are_loud(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    with pytest.raises(ValueError, match=r"'alexnet' is registered twice: by fastcnn\.models\.alexnet:alexnet and by"):
        registry._add(model_spec("alexnet"))


@pytest.mark.parametrize("name", list_models())
def test_table(name):
    spec = model_spec(name)
    assert isinstance(spec, ModelSpec)
    assert spec.name == name
    assert len(spec.mean) == len(spec.std) == spec.input_size[0]
    assert "\n" not in spec.description
    if spec.torchvision_weights is not None:
        import torchvision

        enum = torchvision.models.get_model_weights(name)
        assert enum.__name__ == spec.torchvision_weights
        transform = enum.DEFAULT.transforms()
        assert (tuple(transform.mean), tuple(transform.std)) == (spec.mean, spec.std)
        # A newer recipe may evaluate at another size; the first weights are at the architecture's own.
        assert enum.IMAGENET1K_V1.transforms().crop_size == [spec.input_size[1]]


def test_info():
    model = create_model("inception_v3", seed=3, num_classes=5, dropout=0.2)
    assert not model.training
    info = model.fastcnn_info
    assert isinstance(info, ModelInfo)
    assert info.name == "inception_v3"
    assert info.options == {"num_classes": 5, "aux_logits": True, "transform_input": False, "dropout": 0.2}
    assert info.weights == "random (seed 3), scaled so that no layer inflates its signal"
    assert (info.input_size, info.mean, info.std) == ((3, 299, 299), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transformed = create_model("inception_v3", transform_input=True).fastcnn_info
    assert (transformed.mean, transformed.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.categories is None
    again = create_model(info.name, seed=3, **info.options)
    assert state_dict_sha256(again.state_dict()) == state_dict_sha256(model.state_dict())
    assert again.fastcnn_info == info
    assert "fastcnn_info" not in "".join(model.state_dict())


@pytest.mark.parametrize("create", [create_model, create_untrained_model], ids=["scaled", "untrained"])
@pytest.mark.parametrize("name", ["inception_v3", "simple_cnn", "densenet121", "squeezenet1_1"])
def test_seed(name, create):
    """The same seed gives the same weights, another one others; the global random state stays as it was."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, same, other = (state_dict_sha256(create(name, seed=seed).state_dict()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == same != other
    torch.manual_seed(12)
    assert state_dict_sha256(create(name, seed=1).state_dict()) == first


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"dropout": 0.1}, "resnet18 has no option 'dropout'; it has num_classes, zero_init_residual"),
        (
            "googlenet",
            {"aux": 1, "depth": 2},
            "googlenet has no option 'aux', 'depth'; it has num_classes, aux_logits, transform_input, dropout, dropout_aux",
        ),
        ("simple_cnn", {"num_classes": 0}, "num_classes of simple_cnn must be a positive whole number, not 0"),
        ("simple_cnn", {"num_classes": "10"}, "num_classes of simple_cnn must be a positive whole number, not '10'"),
        ("alexnet", {"dropout": 1.5}, "alexnet cannot be built with num_classes=1000, dropout=1.5: "),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(RequestError) as raised:
        create_model(name, **options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("create", [create_model, create_untrained_model], ids=["scaled", "untrained"])
def test_zero_init_residual(create):
    model = create("resnet50", zero_init_residual=True)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert all(not block.bn3.weight.any() for block in stage)
    assert not any(block.bn2.weight.any() for block in create("resnet18", zero_init_residual=True).layer1)


ARCHITECTURES = [
    *("alexnet", "vgg11_bn", "googlenet", "inception_v3", "inception_v4", "resnet50", "preact_resnet18", "densenet121", "squeezenet1_0"),
    *list_models("*_mnist"),
    *list_models("*_cifar10"),
    "simple_cnn",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_capture_with_a_dynamic_batch(name):
    """`torch.export` takes every architecture with any batch; the input check leaves no trace in the graph."""
    spec = model_spec(name)
    options = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = spec.load_builder()(**options).eval()
    example = torch.empty(2, *spec.input_size, device="meta")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith("aten.") for target in targets)
    assert not any("sym" in target or "assert" in target for target in targets)
    assert program.module()(torch.empty(5, *spec.input_size, device="meta")).shape == (5, spec.num_classes)
