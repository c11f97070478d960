"""Every ImageNet model against its twin in torchvision (timm for Inception-v4): the same state dict, the same numbers, bit for bit."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from support import randomize_weights
from torch import nn

from fastcnn.models import create_model, create_untrained_model, list_models, model_spec

TWINS = [name for name in list_models() if model_spec(name).family == "imagenet" and not name.startswith("preact_")]

# Where an image may be smaller than the model's own size, the comparison is cheaper at about the smallest that every layer still sees.
SMALL = {"inception_v3": 107, "inception_v4": 107}

WITH_AUX = [("googlenet", {"dropout_aux": 0.3}, 64), ("inception_v3", {"dropout": 0.3}, 299)]


def twin_on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        if name == "inception_v4":
            return timm.create_model(name, **options)
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
            options.setdefault("aux_logits", True)
        return torchvision.models.get_model(name, weights=None, **options)


def ours_on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return model_spec(name).load_builder()(**options)


def pair(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """A twin with random weights, and our model with its state dict. They share memory, so that VGG does not take it twice."""
    twin = twin_on_meta(name, **options).to_empty(device="cpu")
    for key, buffer in twin.named_buffers():
        if key.endswith("num_batches_tracked"):
            buffer.zero_()
    randomize_weights(twin)
    ours = ours_on_meta(name, **options)
    ours.load_state_dict(twin.state_dict(), strict=True, assign=True)
    return ours, twin


def image(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_identical(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", TWINS)
def test_state_dict(name):
    """The same names, in the same order, with the same shapes and dtypes."""
    described = [
        [(key, tensor.shape, tensor.dtype) for key, tensor in model.state_dict().items()] for model in (ours_on_meta(name), twin_on_meta(name))
    ]
    assert described[0] == described[1]


@pytest.mark.parametrize("name", TWINS)
def test_eval_outputs(name):
    ours, twin = pair(name)
    x = image(SMALL.get(name, 64))
    with torch.no_grad():
        expected = twin.eval()(x)
        assert expected.std() > 1e-3, "the comparison would show nothing"
        assert_identical(ours.eval()(x), expected)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "resnet50", "densenet121"])
def test_eval_outputs_at_full_size(name):
    ours, twin = pair(name)
    x = image(model_spec(name).input_size[1], batch=1)
    with torch.no_grad():
        assert_identical(ours.eval()(x), twin.eval()(x))


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_transform_input(name):
    ours, twin = pair(name, transform_input=True)
    x = image(107)
    with torch.no_grad():
        expected = twin.eval()(x)
        assert_identical(ours.eval()(x), expected)
        ours.transform_input = False
        assert not torch.equal(ours(x), expected)


@pytest.mark.parametrize(("name", "options", "size"), WITH_AUX, ids=[row[0] for row in WITH_AUX])
def test_training_outputs_with_auxiliary_heads(name, options, size):
    """Main and auxiliary logits under the same names, and the same running statistics afterwards; dropout is drawn from one seed."""
    _, twin = pair(name, **options)
    ours = create_model(name, **options)  # in memory of its own: training mode writes statistics
    ours.load_state_dict(twin.state_dict(), strict=True)
    x = image(size)
    torch.manual_seed(3)
    expected = twin.train()(x)
    torch.manual_seed(3)
    outputs = ours.train()(x)
    assert outputs._fields == expected._fields
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_identical(actual, wanted)
    assert_identical(dict(ours.named_buffers()), dict(twin.named_buffers()))
    sum(output.sum() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "squeezenet1_0"])
def test_training_outputs(name):
    ours, twin = pair(name, num_classes=5)
    for module in ours.modules():  # running statistics of its own
        module._buffers.update({key: buffer.clone() for key, buffer in module._buffers.items()})
    x = image(64)
    torch.manual_seed(3)
    expected = twin.train()(x)
    torch.manual_seed(3)
    assert_identical(ours.train()(x), expected)
    assert_identical(dict(ours.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_without_auxiliary_heads(name):
    ours, twin = pair(name, aux_logits=False)
    x = image(107)
    assert isinstance(ours.train()(x), torch.Tensor)
    with torch.no_grad():
        assert_identical(ours.eval()(x), twin.eval()(x))


def test_drop_rate_of_densenet():
    twin = randomize_weights(torchvision.models.densenet121(num_classes=5, drop_rate=0.4))
    ours = create_model("densenet121", num_classes=5, drop_rate=0.4)
    ours.load_state_dict(twin.state_dict())
    torch.manual_seed(3)
    expected = twin.train()(image(32))
    torch.manual_seed(3)
    assert_identical(ours.train()(image(32)), expected)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "resnet18", "vgg11", "squeezenet1_1", "densenet121", "alexnet"])
def test_initial_distribution(name):
    """Mean and deviation of every large weight, and every constant, are those that torchvision starts from."""
    options = {"num_classes": 50}
    twin_options = options | ({"init_weights": True} if name in ("inception_v3", "googlenet") else {})
    twin = torchvision.models.get_model(name, weights=None, **twin_options).state_dict()
    for key, tensor in create_untrained_model(name, **options).state_dict().items():
        # A million of a hundred million random numbers are enough to tell what they are drawn from.
        drawn, wanted = tensor.flatten()[:1_000_000], twin[key].flatten()[:1_000_000]
        if bool((wanted == wanted[:1]).all()):
            assert_identical(tensor, twin[key])
        elif tensor.numel() >= 4096:
            torch.testing.assert_close(drawn.std(), wanted.std(), rtol=0.1, atol=0, msg=lambda text, key=key: f"{key}: {text}")
            assert abs(drawn.mean()) < 0.1 * drawn.std(), key
