"""Parameter counts and shapes of every model, without computing anything: on the meta device."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from fastcnn.errors import InputError
from fastcnn.models.registry import list_models, model_spec

# The specification's figures, and torchvision's published ones for the depths that it does not list.
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet": 13_004_888,
    "inception_v3": 27_161_264,
    "inception_v4": 42_679_816,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "preact_resnet18": 11_687_720,
    "preact_resnet34": 21_795_880,
    "preact_resnet50": 25_549_352,
    "preact_resnet101": 44_541_480,
    "preact_resnet152": 60_185_128,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "simple_cnn": 8_490,
    "inception_mnist": 97_298,
    "residual_mnist": 41_514,
    "vgg_cifar10": 9_750_922,
    "nin_cifar10": 1_589_926,
    "googlenet_cifar10": 7_188_302,
    "resnet18_cifar10": 11_184_650,
}

# Below these sizes (height and width) a model cannot run; models of one fixed size are not listed.
MIN_SIZES = {
    "alexnet": 63,
    "vgg11": 32,
    "vgg19_bn": 32,
    "googlenet": 15,
    "inception_v3": 75,
    "inception_v4": 75,
    "resnet18": 1,
    "resnet50": 1,
    "preact_resnet18": 1,
    "preact_resnet50": 1,
    "densenet121": 29,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "nin_cifar10": 15,
    "resnet18_cifar10": 1,
}

FIXED_SIZES = ["simple_cnn", "inception_mnist", "residual_mnist", "vgg_cifar10", "googlenet_cifar10"]


@cache
def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return model_spec(name).load_builder()(**options).eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_model_has_a_figure():
    assert set(PARAMETERS) == set(list_models())


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters_and_output_shape(name):
    model, spec = on_meta(name), model_spec(name)
    assert count(model) == PARAMETERS[name]
    assert model(torch.empty(2, *spec.input_size, device="meta")).shape == (2, spec.num_classes)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_num_classes(name):
    assert on_meta(name, num_classes=7)(torch.empty(2, *model_spec(name).input_size, device="meta")).shape == (2, 7)


def test_googlenet_cifar10_by_part():
    model = on_meta("googlenet_cifar10")
    heads = count(model.aux1) + count(model.aux2)
    assert heads == 1_204_500
    assert count(model.fc) == 10_250
    assert count(model) - heads - count(model.fc) == 5_973_552
    assert count(on_meta("googlenet_cifar10", aux_logits=False)) == 5_973_552 + 10_250


@pytest.mark.parametrize("name", MIN_SIZES)
def test_smallest_image(name):
    """The limit is where the model itself stops working, not somewhere on the safe side."""
    size = MIN_SIZES[name]
    model = on_meta(name)
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, model_spec(name).num_classes)
    if size > 1:
        for shape in [(2, 3, size - 1, size), (2, 3, size, size - 1)]:
            with pytest.raises(InputError, match=rf"\(N, 3, H, W\) with H and W of at least {size}, not \({shape[0]}, {shape[1]}, "):
                model(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("name", FIXED_SIZES)
def test_fixed_image_size(name):
    channels, size, _ = model_spec(name).input_size
    model = on_meta(name)
    for other in (size - 1, size + 1):
        with pytest.raises(InputError, match=f"with H and W equal to {size}, not "):
            model(torch.empty(2, channels, size, other, device="meta"))


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_wrong_channels_or_rank(name):
    channels, height, width = model_spec(name).input_size
    for shape in [(2, 5 - channels, height, width), (channels, height, width)]:
        with pytest.raises(InputError, match=rf"takes images of shape \(N, {channels}, H, W\).*not \(") as raised:
            on_meta(name)(torch.empty(shape, device="meta"))
        assert "\n" not in str(raised.value)
